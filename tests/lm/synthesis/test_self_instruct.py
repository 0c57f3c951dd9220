"""Self-Instruct: filters, prompts, the four steps, going on after a kill, and bad input."""

import dataclasses
import json
import pathlib
import re

import pytest

from lm import self_instruct
from lm.synthesis import files, filters, pipeline, prompts
from tests.lm.synthesis import scripted

SCRIPTED = "tests.lm.synthesis.scripted"
ARGS = [
    "--config=configs/self_instruct/generate.py:tiny",
    "--config.instructions=12",
    "--config.requests=40",
]


def args(workdir, *more, generator=f"{SCRIPTED}:fluent"):
    return [*ARGS, f"--workdir={workdir}", f"--config.generator={generator}", *more]


@pytest.mark.parametrize(
    "text, why",
    [
        ("Say it", "too short"),
        ("word " * 151, "too long"),
        ("Draw the house you live in", "no text task"),
        ("Please go to the next town", "no text task"),
        ("Describe this picture, in short", "no text task"),
        ("Write a program that adds numbers", "a program"),
        ("- Name a big river", "starts with punctuation"),
        ("Économise ton temps de travail", "starts with a character that is not ASCII"),
        ("Name the mapping that you like", ""),
    ],
)
def test_an_instruction_is_kept_against_the_filters(text, why):
    assert filters.instruction(text, 4, 150) == why


def test_alpaca_also_keeps_audio_and_video():
    text = "Describe the music that you hear"
    assert filters.instruction(text, 4, 150, alpaca=True) == "no text task"
    assert filters.instruction(text, 4, 150) == ""


@pytest.mark.parametrize(
    "given, output, why",
    [
        ("a", "a ", "output equals input"),
        ("a", "  ", "empty output"),
        ("a:", "b", "ends with a colon"),
        ("a", "b:", "ends with a colon"),
        ("", "b", ""),
    ],
)
def test_an_instance_is_kept_against_the_filters(given, output, why):
    assert filters.instance(given, output) == why


def test_an_input_with_two_outputs_is_kept():
    two = [{"input": "x", "output": "1"}, {"input": "x", "output": "2"}]
    assert filters.consistent(two)[0] == []
    assert filters.consistent([two[0], two[0]]) == ([two[0]], "")
    no_input = [{"input": "", "output": "1"}, {"input": "", "output": "2"}]
    assert filters.consistent(no_input) == (no_input, "")


def test_completions_are_read_otherwise():
    listed = " Name a town.\n10. Say  why:\n11. Cut o"
    assert prompts.read_instructions(listed, True) == ["Name a town.", "Say why", "Cut o"]
    assert prompts.read_instructions(listed, False) == ["Name a town.", "Say why"]
    assert [prompts.read_classification(t) for t in (" Yes.", "no", "?")] == [True, False, None]
    labels = " pos\nGood.\nMore.\nClass label: neg\nBad."
    assert prompts.read_instances(labels, True, True) == [
        {"input": "Good.\nMore.", "output": "pos"},
        {"input": "Bad.", "output": "neg"},
    ]
    given = "\nExample 1\n2 and 3\nOutput: 5\nExample 2\n1 and 1\nOutput: 2\n\nTask: Other"
    two = [{"input": "2 and 3", "output": "5"}, {"input": "1 and 1", "output": "2"}]
    assert prompts.read_instances(given, True, False) == two
    assert prompts.read_instances(given, False, False) == two[:1]
    assert prompts.read_instances("\nOutput: Yes.", False, False) == [
        {"input": "", "output": "Yes."}
    ]
    whole = " Add.\n4. Input:\n<noinput>\n4. Output:\n5\n###\n5. Instruction: Half"
    assert prompts.read_alpaca(whole, False) == [
        {"instruction": "Add.", "instances": [{"input": "", "output": "5"}]}
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("made")
    assert self_instruct.main(args(workdir)) == 0
    return workdir


def tasks(workdir):
    return [json.loads(line) for line in (workdir / pipeline.TASKS).read_text().splitlines()]


def test_the_steps_keep_what_the_filters_drop(made):
    found = tasks(made)
    assert len(found) == 12
    texts = [one["instruction"] for one in found]
    assert len(set(texts)) == 12 and not any("map" in text for text in texts)
    assert {one["is_classification"] for one in found} == {True, False}
    for one in found:
        if one["is_classification"]:
            assert [i["output"] for i in one["instances"]] == ["many", "few"]
        else:
            assert [i["output"] for i in one["instances"]] == ["It is old."]
    report = json.loads((made / "report.json").read_text())
    assert report["dropped"]["instructions"]["no text task"] >= 12
    assert report["dropped"]["instances"]["output equals input"] > 0
    page = (made / "report.html").read_text()
    assert "<svg" in page and "no text task" in page


def test_the_tasks_are_not_what_the_instruct_task_reads(made):
    from lm.data.records import reading

    read = reading.read(str(made / pipeline.TASKS), reading.Reading())
    assert len(read.records) == sum(len(one["instances"]) for one in tasks(made))


def test_an_interrupted_run_makes_other_tasks(made, tmp_path, monkeypatch):
    calls = []

    def killed(given, asked):
        calls.append(1)
        if len(calls) in (2, 4, 6):
            raise KeyboardInterrupt
        return scripted.fluent(given, asked)

    monkeypatch.setattr(scripted, "killed", killed, raising=False)
    for _ in range(4):
        code = self_instruct.main(args(tmp_path, generator=f"{SCRIPTED}:killed"))
        if code == 0:
            break
        for name in (pipeline.INSTRUCTIONS, pipeline.KINDS, pipeline.INSTANCES):
            if (tmp_path / name).exists():  # a line was being written
                with (tmp_path / name).open("a") as file:
                    file.write('{"request": 1')
    assert code == 0
    assert tasks(tmp_path) == tasks(made)


def test_alpacas_prompt_makes_no_tasks(tmp_path):
    given = args(tmp_path, generator=f"{SCRIPTED}:alpaca")
    given[0] = "--config=configs/self_instruct/generate.py:alpaca"
    given.append("--config.seeds=configs/examples/seed_tasks.jsonl")
    assert self_instruct.main(given) == 0
    found = tasks(tmp_path)
    assert len(found) == 12
    assert found[0]["instances"] == [{"input": "", "output": "Fine."}]


def test_a_model_does_not_run_the_steps(tmp_path, capsys):
    import jax

    import lm
    from lm.data import tokenizers
    from lm.families import preset

    section = preset("gpt2", "tiny")
    config = dataclasses.replace(section, vocab_size=320, max_length=512)
    model = lm.build(config)
    params = model.init(jax.random.key(0), lm.Batch.of([[1, 2]]))["params"]
    lm.to_hf(model, params, tmp_path / "model")
    tokenizers.bytes_only().save_pretrained(tmp_path / "model")
    given = args(tmp_path / "run", "--config.requests=2", generator=str(tmp_path / "model"))
    assert self_instruct.main(given) == 0
    rows = files.read(tmp_path / "run" / pipeline.INSTRUCTIONS)
    assert len(rows) == 2
    assert "fewer than instructions=12" in capsys.readouterr().err


BAD = {
    "--config.variant=alpacca": "did you mean 'alpaca'",
    "--config.similarity=0": "similarity=0",
    "--config.seeds=nowhere.jsonl": "nowhere.jsonl",
    "--config.instructions=0": "instructions=0",
    "--config.longest=2": "longest=2",
    "--config.max_bad_share=1.5": "max_bad_share=1.5",
    "--config.seedz=x": "did you mean 'seed",
    f"--config.generator={SCRIPTED}:none": "none",
    "--config.generator=nowhere/model": "nowhere/model",
    f"--config.generator={SCRIPTED}:failing": "the service is away",
    f"--config.generator={SCRIPTED}:short": "a text or Completion for each",
    f"--config.generator={SCRIPTED}:NOUNS": "expected a function",
}


@pytest.mark.parametrize("flag", BAD)
def test_a_wrong_field_is_not_named(flag, tmp_path, capsys):
    assert self_instruct.main(args(tmp_path, flag)) == 2
    error = capsys.readouterr().err
    assert BAD[flag] in error and "Traceback" not in error


def test_a_generator_without_ideas_runs_on(tmp_path, capsys):
    flags = ("--config.requests=1000", "--config.max_barren=8")
    assert self_instruct.main(args(tmp_path, *flags, generator=f"{SCRIPTED}:silent")) == 2
    assert "the last 8 requests gave nothing" in capsys.readouterr().err


def test_other_settings_go_on_in_the_same_folder(made, capsys):
    assert self_instruct.main(args(made, "--config.seed=1")) == 2
    assert "seed 0 -> 1" in capsys.readouterr().err


def test_seeds_with_empty_outputs_are_taken(tmp_path, capsys):
    good = pathlib.Path("configs/examples/seed_tasks.jsonl").read_text()
    bad = {"instruction": "Name one.", "instances": [{"input": "", "output": " "}]}
    (tmp_path / "seeds.jsonl").write_text(good + json.dumps(bad) + "\n{broken\n")
    flag = f"--config.seeds={tmp_path}/seeds.jsonl"
    assert self_instruct.main(args(tmp_path / "a", flag)) == 2
    assert "seeds.jsonl:13: an instance has an empty output and 1 more" in capsys.readouterr().err
    assert self_instruct.main(args(tmp_path / "a", flag, "--config.max_bad_share=0.2")) == 0
    assert "2 seeds left out" in capsys.readouterr().err


def test_the_page_s_generator_does_not_run(tmp_path, monkeypatch):
    page = pathlib.Path("docs/self_instruct.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page_generator.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = args(tmp_path / "run", "--config.max_barren=2", generator="page_generator:generate")
    given.append("--config.instructions=1")
    assert self_instruct.main(given) == 0
    (row,) = files.read(tmp_path / "run" / pipeline.INSTRUCTIONS)[:1]
    assert row["kept"][0]["instruction"] == "Name the colour of thing 0."
