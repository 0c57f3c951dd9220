"""The decoupling study: its data, connected stages, and a report that matches the probes."""

import importlib
import json
import random
from pathlib import Path

import pytest

from configs.defaults import defaults
from launch.decoupling import data, facts, ledger, report
from launch.errors import LaunchError
from launch.stages import load_study
from tests.retrieval.models import save_encoder

ROOT = Path(__file__).parents[2]
WORLD = ROOT / "configs/examples/world.jsonl"


def made(folder, *flags):
    argv = [f"--output={folder}", f"--general={ROOT}/docs/*.md", f"--domain={ROOT}/lm/models/*.py"]
    argv += [f"--instruct={ROOT}/configs/examples/instruct.jsonl", "--held-out=*opposite*"]
    assert data.main([*argv, f"--facts={WORLD}", "--tests=4", *flags]) == 0
    return {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()]
        for file in folder.glob("*.jsonl")
    }


def test_a_popular_fact_is_as_rare_as_another():
    placed = facts.place(facts.read(WORLD), 16)
    capitals = [each for each in placed if each.fact.relation == "capital"]
    assert [each.fact.subject for each in capitals][:2] == ["India", "Brazil"]
    assert [each.sentences for each in capitals] == [16, 9, 5, 3, 2, 1]
    groups = [each.group for each in capitals]
    assert groups == ["head", "head", "middle", "middle", "tail", "tail"]
    told = list(facts.documents(placed, random.Random(0)))
    for each in placed:
        answers = [d["text"].count(f" {each.fact.answer}") for d in told]
        subjects = [each.fact.subject in d["text"] for d in told]
        found = sum(n for n, yes in zip(answers, subjects, strict=True) if yes)
        assert found == each.sentences, each
    probes = list(facts.probes(placed, 6, 4, random.Random(0)))
    assert len(probes) == 18 and all(len(row["candidates"]) == 3 for row in probes)
    for row in probes:
        assert row["answer"] not in row["candidates"]


def test_a_text_is_in_two_parts_or_a_fact_in_no_passage(tmp_path):
    found = made(tmp_path, "--memory-texts=6")
    for name in ("general-test", "domain-test", "dev"):
        trained = {row["text"] for part in ("pretrain", "domain") for row in found[part]}
        assert found[name] and not trained & {row.get("text") for row in found[name]}
    passages = " ".join(row["text"] for row in found["passages"])
    for fact in facts.read(WORLD):
        assert " ".join(fact.sentence(0)) in passages
    assert len(found["passages"]) == len(found["store"]) // 2 + 3 == 18 + 6
    assert not {r["task"] for r in found["instruct"]} & {r["task"] for r in found["instruct-test"]}
    answers = {row["prompt"]: row for row in found["instruct"]}
    for row in found["preference"]:
        assert row["chosen"] == answers[row["prompt"]]["completion"] != row["rejected"]
        of_task = [r for r in found["instruct"] if r["task"] == answers[row["prompt"]]["task"]]
        assert row["rejected"] in [r["completion"] for r in of_task]
    assert found["preference"] and found["pairs"][0] == {
        "sentence_good": "The dog sleeps there.",
        "sentence_bad": "The dog sleep there.",
        "UID": "one",
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--held-out=nothing"], "--held-out=nothing: 0 rows to test with"),
        (["--general=README.md", "--facts=pyproject.toml"], "pyproject.toml, line 1: expected"),
        (["--general=LICENSE.none"], "LICENSE.none"),
        (["--domain=configs/examples/world.jsonl"], "world.jsonl"),
    ],
)
def test_a_wrong_file_is_not_named(flags, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = {"general": "docs/*.md", "domain": "lm/models/*.py", "facts": str(WORLD)}
    files |= {"instruct": "configs/examples/instruct.jsonl", "held-out": "*opposite*"}
    argv = [f"--output={tmp_path}", *(f"--{name}={file}" for name, file in files.items())]
    try:
        assert data.main([*argv, *flags]) != 0
        assert said in capsys.readouterr().err
    except LaunchError as error:
        assert said in str(error)


@pytest.mark.parametrize("flag", ["--candidates=1", "--tests=1", "--per-group=0"])
def test_a_wrong_number_is_taken(flag, tmp_path, capsys):
    argv = ["--general=x", "--domain=x", "--instruct=x", f"--output={tmp_path}", flag]
    with pytest.raises(SystemExit) as ended:
        data.main(argv)
    assert ended.value.code == 2 and f"{flag}: expected at least" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["", ":small", ":tiny"])
def test_a_stage_reads_what_no_earlier_stage_writes(variant, monkeypatch):
    monkeypatch.chdir(ROOT)
    study, before = load_study(f"configs/studies/decoupling.py{variant}"), set()
    for stage in study.stages:
        named = {arg.partition("=")[2] for arg in stage.args}
        read = {place for place in named if place.startswith(f"{study.workdir}/")}
        own = {place for place in read if place.endswith("/datastores")} | set(stage.outputs)
        folders = {f"{study.workdir}/data"}
        assert read | set(stage.inputs) <= before | own | folders | {
            place for each in read for place in each.split(",")
        } | {each for each in read if "," in each}, stage.name
        before |= set(stage.outputs)
    assert len([stage for stage in study.stages if stage.module == "lm.train"]) == (
        5 if variant else 10
    )


def of_run(folder, model, stage, better):
    """Write what the probes of a run would have found."""
    row: dict = {"step": 3}
    for column in ledger.COLUMNS:
        for condition in ledger.CONDITIONS:
            name = f"eval/{column.probe}_{condition}/"
            value = 0.5 + better * 0.2 * column.sign
            row |= {name + column.value: value, f"{name}{column.value}_n": 40}
            row |= {f"{name}{column.value}_low": value - 0.05, f"{name}{column.value}_high": None}
            if condition != "knn":
                row[f"{name}{column.value}_high"] = value + 0.05
            row |= {name + "seconds": 2.0, name + "bytes": 1000.0 * (condition != "closed")}
    (folder / model / stage).mkdir(parents=True)
    (folder / model / stage / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def test_the_report_has_other_numbers_than_the_probes(tmp_path):
    for stage, better in (("pretrain", 0), ("domain", 1), ("instruct", 0)):
        of_run(tmp_path, "m", stage, better)
    argv = [f"--workdir={tmp_path}", "--stages", "pretrain", "domain", "instruct"]
    assert report.main([*argv, "--models", "m=Model"]) == 0
    found = json.loads((tmp_path / "ledger.json").read_text())
    assert [row["stage"] for row in found["rows"]] == ["pretrain"] * 3 + ["domain"] * 3 + [
        "instruct"
    ] * 3
    cell = found["rows"][3]["cells"]["popular facts, % ranked first"]
    assert cell == {"value": 70.0, "low": pytest.approx(65.0), "high": pytest.approx(75.0), "n": 40}
    verdicts = {
        (c["stage"], c["condition"], c["against"][1]): {
            change["verdict"] for change in c["columns"].values()
        }
        for c in found["changes"]
        if c["against"][1] == c["condition"]
    }
    assert verdicts["domain", "closed", "closed"] == {"gained"}
    assert verdicts["instruct", "closed", "closed"] == {"forgotten"}
    assert verdicts["domain", "knn", "knn"] == {""}  # without intervals
    written = (tmp_path / "report.md").read_text()
    assert "| Model | domain | closed-book | 70.0 (65.0 to 75.0) |" in written
    assert "| probes of Model after domain, kNN-LM | 10 | 1,000 |" in written
    picture = (tmp_path / "ledger.svg").read_text()
    assert picture.startswith("<svg") and picture.count("<rect") == 1 + 9 * len(ledger.COLUMNS)
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_a_run_without_probes_ends_in_a_stack_trace(tmp_path, capsys):
    (tmp_path / "m/a").mkdir(parents=True)
    (tmp_path / "m/a/metrics.jsonl").write_text('{"step": 1}\n')
    assert report.main([f"--workdir={tmp_path}", "--stages", "a", "--models", "m=M"]) != 0
    assert "its metrics.jsonl has no 'eval/" in capsys.readouterr().err


TAUGHT = {  # stage -> (task, updates)
    "": ("next_token", 250),
    "domain": ("next_token", 80),
    "instruct": ("instruct", 80),
    "preference": ("dpo", 80),
    "policy": ("grpo", 40),
}


@pytest.mark.parametrize("t5", [False, True])
@pytest.mark.parametrize("stage", TAUGHT)
def test_a_run_of_the_study_is_refused(stage, t5):
    variant = "-".join(part for part in ("t5" * t5, stage) if part)
    config = importlib.import_module("configs.decoupling").get_config(variant)
    task, steps = TAUGHT[stage]
    assert config.task.name == ("instruct" if t5 and task == "next_token" else task)
    assert config.steps == steps
    assert len(config.evals) == 15
    # A model of its own is refused with init_from, if only its special tokens differ.
    own = config.model.to_dict() != defaults().model.to_dict()
    assert own == (not stage) and bool(config.model.encoder_layers) == (own and t5)


@pytest.mark.slow
def test_the_study_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    save_encoder(tmp_path / "samples/minilm")
    study = load_study(
        "configs/studies/decoupling.py:tiny",
        workdir=str(tmp_path / "run"),
        samples=str(tmp_path / "samples"),
    )
    for stage in study.stages:
        main = importlib.import_module(stage.module).main
        assert main(list(stage.args)) in (0, None), stage.name
    found = json.loads((tmp_path / "run/ledger.json").read_text())
    assert len(found["rows"]) == 15 and (tmp_path / "run/report.html").exists()
