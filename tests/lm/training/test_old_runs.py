"""Runs of format 1: their configs and facts mean the same in the section of a task."""

import copy
import importlib
import json

import pytest
from ml_collections import ConfigDict

from configs.defaults import defaults
from lm import evaluate, export, tasks
from lm.data.mixtures import Mixture, Part
from lm.data.packed import digest, synthetic
from lm.models.config import ConfigError
from lm.training import checkpoints, comparison, loop, sequence, settings
from lm.training.checkpoints import CheckpointError
from lm.weights.runs import old_runs, run_folder
from lm.weights.runs import steps as step_folders
from tests.lm.training import runs

OBJECTIVE = {  # section `objective` of format 1, with its defaults
    "name": "next_token",
    "chunk": 0,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "masked": {"rate": 0.15, "mask": 0.8, "random": 0.1, "whole_words": False},
    "span_corruption": {"rate": 0.15, "mean_span": 3.0},
    "instruct": {"prompt_loss_weight": 0.0},
    "ul2": {"r": 2.0, "s": 1.0, "x": 4.0, "modes": False},
    "denoising": {
        "rate": 0.3,
        "mean_span": 3.0,
        "permute_sentences": False,
        "token_mask": 0.0,
        "delete": 0.0,
        "rotate": 0.0,
    },
    "classification": {"labels": [], "regression": False},
    "token_classification": {"labels": []},
    "contrastive": {"temperature": 0.05, "negatives": 0, "symmetric": False, "pooling": ""},
}
DATA = {  # section `data` of format 1, with its defaults
    "files": "",
    "mixture": {},
    "temperature": 1.0,
    "field": "text",
    "label_field": "",
    "pair_field": "",
    "negatives_field": "",
    "separator": "",
    "format": "text",
    "template": "",
    "turns": "all",
    "shots": 0,
    "cap": 0,
    "hold_out": "",
    "holdout_share": 0.0,
    "max_bad_share": 0.0,
    "too_long": "drop",
    "max_long": 0.01,
    "target_length": 0,
    "tk_instruct": {
        "definition": True,
        "positive": 2,
        "negative": 0,
        "explanations": False,
        "mixed": False,
        "max_prompt": 1024,
    },
    "stride": 0,
    "cache": "",
    "synthetic_rows": 0,
}
INSTRUCT = {"format": "auto", "template": "tulu"}
TK_INSTRUCT = {**DATA["tk_instruct"], "positive": 1, "mixed": True}
# name, changed options of its section, other changes of `objective`, changes of `data`, and the
# fields of the task that say the same
CASES = [
    ("next_token", {}, {}, {}, {}),
    (
        "next_token",
        {},
        {"chunk": 64, "z_loss": 1e-4, "label_smoothing": 0.1},
        {"field": "body", "separator": "|", "stride": 8},
        {
            "chunk": 64,
            "z_loss": 1e-4,
            "label_smoothing": 0.1,
            "field": "body",
            "separator": "|",
            "stride": 8,
        },
    ),
    ("prefix_lm", {}, {}, {"field": "body"}, {"field": "body"}),
    (
        "masked",
        {"rate": 0.3, "whole_words": True},
        {"chunk": 64},
        {"separator": "|"},
        {"rate": 0.3, "whole_words": True, "chunk": 64, "separator": "|"},
    ),
    ("span_corruption", {"mean_span": 5.0}, {}, {}, {"mean_span": 5.0}),
    ("ul2", {"x": 2.0, "modes": True}, {}, {}, {"x": 2.0, "modes": True}),
    ("denoising", {"rotate": 0.5}, {}, {}, {"rotate": 0.5}),
    (
        "instruct",
        {"prompt_loss_weight": 0.1},
        {"z_loss": 1e-4},
        INSTRUCT | {"cap": 3, "hold_out": "t7", "shots": 1, "turns": "last", "max_long": 0.5},
        INSTRUCT
        | {"cap": 3, "hold_out": "t7", "shots": 1, "turns": "last", "max_long": 0.5}
        | {"z_loss": 1e-4, "prompt_loss_weight": 0.1},
    ),
    (
        "instruct",
        {},
        {},
        {
            "format": "superni",
            "template": "tk_instruct",
            "tk_instruct": TK_INSTRUCT,
            "target_length": 64,
            "too_long": "truncate_prompt",
        },
        {
            "format": "superni",
            "template": "tk_instruct",
            "tk_instruct": TK_INSTRUCT,
            "target_length": 64,
            "too_long": "truncate_prompt",
        },
    ),
    (
        "classification",
        {"labels": ["x", "y"]},
        {},
        {"pair_field": "second"},
        {"labels": ("x", "y"), "pair_field": "second", "label_field": "label"},
    ),
    (
        "classification",
        {"regression": True},
        {},
        {"label_field": "score", "max_long": 0.2},
        {"regression": True, "label_field": "score", "max_long": 0.2},
    ),
    ("token_classification", {}, {}, {"field": "words"}, {"field": "words", "label_field": "tags"}),
    ("question_answering", {}, {}, {"stride": 8}, {"stride": 8}),
    (
        "contrastive",
        {"temperature": 0.1, "negatives": 2},
        {},
        {"pair_field": "passage", "negatives_field": "others"},
        {"temperature": 0.1, "negatives": 2, "pair_field": "passage", "negatives_field": "others"},
    ),
]


def old(name, own=None, objective=None, data=None):
    """Config of format 1 as in config.json, with changes."""
    config = json.loads(json.dumps(defaults().to_dict()))
    del config["task"]
    config["objective"] = copy.deepcopy(OBJECTIVE) | {"name": name} | (objective or {})
    if own:
        config["objective"][name] |= own
    config["data"] = copy.deepcopy(DATA) | (data or {})
    return config


def plain(section):
    return json.loads(json.dumps(section.to_dict()))


@pytest.mark.parametrize(("name", "own", "objective", "data", "fields"), CASES)
def test_a_config_of_format_1_becomes_another_task(name, own, objective, data, fields):
    config = old(name, own, objective, data)
    kept = copy.deepcopy(config)
    found = old_runs.upgrade(config)
    assert config == kept, "the given config was changed"
    wanted = tasks.defaults(name, **fields)
    assert json.loads(json.dumps(found["task"])) == plain(wanted)
    assert tasks.of(found) == tasks.of({"task": wanted})
    del found["task"], kept["objective"]
    assert set(found["data"]) == set(defaults().data.keys())
    kept["data"] = {key: value for key, value in kept["data"].items() if key in found["data"]}
    assert found == kept
    assert old_runs.upgrade(found) is found and old_runs.upgrade({"x": 1}) == {"x": 1}


def test_a_run_from_before_its_task_had_a_field_lacks_it():
    whole = plain(tasks.defaults("distillation", teacher="t", soft=0.5))
    before = {name: value for name, value in whole.items() if name not in ("top_k", "outputs")}
    found = old_runs.upgrade({"task": before, "seed": 1})
    assert found == {"task": whole, "seed": 1} and tasks.of(found).soft == 0.5


def mixture(**changes):
    """Config of format 1 with answers, a chat and replayed text."""
    sources = {
        "answers": {"files": "a", "weight": 2.0, "hold_out": "t7", "max_bad_share": 0.1},
        "chat": {"files": "c", "weight": 1.0, "format": "messages", "objective": "instruct"},
        "plain": {"files": "p", "weight": 1.0},
        "replay": {"files": "r", "weight": 1.0, "objective": "next_token", "separator": "|"},
    }
    data = INSTRUCT | {"temperature": 2.0, "cap": 5, "field": "text", "mixture": sources}
    return old("instruct", {}, {"chunk": 32}, data | changes)


def test_a_mixture_of_format_1_has_other_sources():
    found = old_runs.upgrade(mixture())
    text = tasks.defaults("next_token", separator="|", chunk=32)
    assert json.loads(json.dumps(found["data"]["mixture"])) == {
        "answers": {
            "files": "a",
            "weight": 2.0,
            "max_bad_share": 0.1,
            "task": {"hold_out": "t7"},
        },
        "chat": {"files": "c", "weight": 1.0, "task": {"format": "messages"}},
        "plain": {"files": "p", "weight": 1.0},
        "replay": {"files": "r", "weight": 1.0, "task": plain(text)},
    }
    assert found["data"]["temperature"] == 2.0
    assert found["task"] == plain(tasks.defaults("instruct", cap=5, chunk=32, **INSTRUCT))
    config = defaults()
    config.tokenizer = "bytes"
    config.task = tasks.defaults("instruct", cap=5, chunk=32, **INSTRUCT)
    config.data = ConfigDict(found["data"])
    settings.check(config, 8)


PACKED = synthetic(64, 20, 4)
OTHER = synthetic(64, 20, 4, seed=1)
LOSS = ("chunk", "label_smoothing", "z_loss")


def old_facts(config, packed=PACKED):
    """Facts as format 1 saved them."""
    name = config["objective"]["name"]
    objective = {"name": name}
    if name not in ("contrastive", "instruct"):
        objective[name] = config["objective"].get(name, {})
    flat = dict(
        run_folder.flat(
            {
                "seed": config["seed"],
                "length": config["length"],
                "data": config["data"],
                "objective": objective,
            }
        )
    )
    left_out = {"data.cache", "data.max_bad_share", "data.max_long", "data.files"}
    parts = packed.parts if isinstance(packed, Mixture) else []
    left_out |= {f"data.mixture.{part.name}.files" for part in parts}
    digests = {f"data.mixture.{part.name}.files": digest(part.packed) for part in parts}
    return {key: value for key, value in flat.items() if key not in left_out} | (
        digests or {"data.files": digest(packed)}
    )


def new_facts(config, packed=PACKED):
    return sequence.facts(ConfigDict(old_runs.upgrade(config)), packed)


def compared(before, now, packed=PACKED, new=None):
    saved = json.loads(json.dumps(old_runs.upgrade_facts(old_facts(before, packed))))
    return sequence.check(saved, new_facts(now, new or packed), "", 1)


@pytest.mark.parametrize(("name", "own", "objective", "data", "fields"), CASES)
def test_facts_of_format_1_differ_from_those_of_the_same_config(name, own, objective, data, fields):
    config = old(name, own, objective, data)
    assert compared(config, config) == []
    with pytest.raises(CheckpointError, match=r"\n  seed: 0 -> 5\n"):
        compared(config, config | {"seed": 5})
    with pytest.raises(CheckpointError, match=r"\n  data\.files: rows 20 .* -> rows 20 .*\n"):
        compared(config, config, PACKED, OTHER)
    renamed = old("prefix_lm" if name == "next_token" else "next_token")
    with pytest.raises(CheckpointError, match=rf"task\.name: '{name}' -> '"):
        compared(config, renamed)


@pytest.mark.parametrize(
    ("name", "own", "data", "said", "new"),
    [
        ("masked", {"rate": 0.3}, {}, "task.rate: 0.15 -> 0.3", PACKED),
        ("ul2", {"r": 1.0}, {}, "task.r: 2.0 -> 1.0", PACKED),
        ("next_token", {}, {"separator": "|"}, r"task.separator: '' -> '\|'", OTHER),
        ("instruct", {}, {"template": "plain"}, "task.template: 'tulu' -> 'plain'", OTHER),
        (
            "instruct",
            {},
            {"tk_instruct": TK_INSTRUCT},
            "task.tk_instruct.positive: 2 -> 1",
            OTHER,
        ),
        ("next_token", {}, {"temperature": 2.0}, "data.temperature: 1.0 -> 2.0", PACKED),
    ],
)
def test_a_changed_option_of_a_run_of_format_1_is_not_named(name, own, data, said, new):
    before = INSTRUCT if name == "instruct" else {}
    with pytest.raises(CheckpointError, match=rf"\n  {said}\n"):
        compared(old(name, data=before), old(name, own, data=before | data), PACKED, new)


def test_facts_of_a_mixture_of_format_1_differ_from_those_of_the_same_config():
    sources = mixture()["data"]["mixture"]
    packed = Mixture([Part(name, PACKED, 1.0) for name in sources])
    assert compared(mixture(), mixture(), packed) == []
    for field, value, said in (
        ("separator", "/", r"data\.mixture\.replay\.task\.separator: '\|' -> '/'"),
        ("objective", "prefix_lm", r"data\.mixture\.replay\.task\.name: 'next_token' -> 'prefix"),
        ("weight", 3.0, r"data\.mixture\.replay\.weight: 1\.0 -> 3\.0"),
    ):
        changed = mixture()
        changed["data"]["mixture"]["replay"][field] = value
        with pytest.raises(CheckpointError, match=said):
            compared(mixture(), changed, packed)
    with pytest.raises(CheckpointError, match=r"data\.temperature: 2\.0 -> 1\.0"):
        compared(mixture(), mixture(temperature=1.0), packed)


def as_old(config):
    """Config of format 1 that says the same as this config of a run on text."""
    config = json.loads(json.dumps(config))
    task = config.pop("task")
    config["objective"] = OBJECTIVE | {key: task[key] for key in ("name", *LOSS)}
    config["data"] = DATA | config["data"] | {k: v for k, v in task.items() if k in DATA}
    return config


def as_format_1(workdir):
    """Rewrite the config of a run on text in format 1."""
    config = json.loads((workdir / "config.json").read_text())
    assert config.pop("format") == 2
    (workdir / "config.json").write_text(json.dumps(as_old(config)))
    (workdir / "digests-0-of-1").unlink()  # of the config as it was


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, its config in format 2) of a run of 8 steps of 12, as format 1 wrote it."""
    folder = tmp_path_factory.mktemp("old")
    c = runs.config(folder, **{"task.separator": ".", "task.z_loss": 1e-4})
    facts = lambda config, packed, others: old_facts(as_old(config.to_dict()), packed)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(loop, "facts", facts)
        first = c.copy_and_resolve_references()
        first.steps = 8
        first.optimizer.schedule = c.optimizer.schedule = "constant"
        assert loop.train(first, folder / "run") == 0
    as_format_1(folder / "run")
    saved = step_folders.saved_with(folder / "run" / "checkpoints" / "8")
    assert "objective.name" in saved["data"]["sequence"]
    return folder, c


def test_a_run_of_format_1_is_not_evaluated_sampled_or_exported(run, tmp_path, capsys, monkeypatch):
    folder, _ = run
    workdir = folder / "run"
    (tmp_path / "x.txt").write_text("One. Two lies 3 miles from the 4. Three and four.")
    args = [f"--model={workdir}", f"--data={tmp_path / 'x.txt'}", "--json"]
    assert evaluate.main(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["length"] == 16 and found["loss"] > 0
    assert evaluate.main([*args, "--separator=."]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == found["loss"], "separator of the run"
    assert evaluate.main([*args, "--separator=|"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] != found["loss"]
    command, seen = importlib.import_module("lm.generate"), []
    monkeypatch.setattr(
        "lm.generation.stream_text", lambda *given, **_: seen.append(given[3]) or iter(())
    )
    assert command.main([f"--model={workdir}", "--prompt=The 3"]) == 0 and seen[0][0] == 0
    assert export.main([f"--model={workdir}", f"--output={tmp_path / 'out'}"]) == 0
    assert "`next_token`" in (tmp_path / "out" / "README.md").read_text()
    assert comparison._config(str(workdir))["task"]["separator"] == "."


def test_a_run_of_format_1_does_not_resume_or_forgets_its_task(run, capsys):
    folder, c = run
    workdir = folder / "run"
    changed = c.copy_and_resolve_references()
    changed.task = tasks.defaults("prefix_lm", separator=".")
    with pytest.raises(CheckpointError, match=r"task\.name: 'next_token' -> 'prefix_lm'"):
        loop.train(changed, workdir)
    capsys.readouterr()
    assert loop.train(c, workdir) == 0
    said = capsys.readouterr().out
    assert "after step 8" in said
    assert "objective" not in said and "task" not in said, "a change that is none was reported"
    config = json.loads((workdir / "config.json").read_text())
    assert config["format"] == 2 and config["task"]["separator"] == "."
    assert checkpoints.steps(workdir)[-1] == 12
    saved = step_folders.saved_with(workdir / "checkpoints" / "12")
    assert saved["data"]["sequence"]["task.name"] == "next_token"


def test_an_unknown_objective_of_format_1_is_not_explained(tmp_path):
    config = old("next_token") | {"objective": {"name": "of another program"}}
    assert old_runs.upgrade(config) == config
    with pytest.raises(ConfigError, match="unknown"):
        tasks.defaults(config["objective"]["name"])
