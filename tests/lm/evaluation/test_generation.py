"""Answers to instruct data: prompts as in training, scores against all references."""

import json
from typing import Any

import numpy as np
import pytest

import lm
from lm import evaluate
from lm.data import templates, tokenizers
from lm.data.read.sources import DataError
from lm.data.records import reading as records
from lm.data.records.examples import Demonstration, Record
from lm.data.records.reading import Reading, read
from lm.evaluation import generation, scores
from lm.training.checkpoints import Checkpoints
from lm.training.state import create_state
from lm.weights.runs import model_files
from lm.weights.runs import weights as run_weights
from tests.lm.data.template_cases import CHATML, with_control
from tests.lm.models.test_model import make
from tests.lm.small_models import drawn
from tests.lm.training import small

TOKENIZER: Any = tokenizers.bytes_only()
ROWS = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(5)]


@pytest.mark.parametrize("name", ["gpt2", "t5", "mamba"])
def test_an_answer_is_not_what_generate_gives_to_the_prompt_alone(name):
    model, params = make(
        name,
        vocab_size=257,
        max_length=160,
        **({"decoder_start_token_id": 1} if name == "t5" else {}),
    )
    template = templates.get("self_instruct", TOKENIZER)
    records = [
        Record(instruction="Say it. " * n, output="it", references=("it", "that"), task="t")
        for n in (1, 3, 2)
    ]
    asked = generation.questions(records, template, model, TOKENIZER, 8)
    found = generation.answers(model, params, TOKENIZER, asked, 8, template, batch_size=2)
    for question, answer in zip(asked, found, strict=True):
        new = lm.generate(model, params, [question.ids], 8, stop_tokens=[TOKENIZER.eos_token_id])[0]
        assert answer == generation.Answer(
            TOKENIZER.decode(new, clean_up_tokenization_spaces=False).strip(), len(new) < 8
        )
        assert (
            question.references == ("it", "that")
            and TOKENIZER.decode(question.ids) == question.text
        )


def test_a_prompt_that_leaves_no_room_loses_the_beginning_of_its_text():
    model, _ = make("gpt2", vocab_size=257, max_length=64)
    template = templates.get("self_instruct", TOKENIZER)
    record = Record(instruction="x" * 100, input="the end", output="it")
    (question,) = generation.questions([record], template, model, TOKENIZER, 10)
    assert len(question.ids) == 54 and question.text.endswith(TOKENIZER.decode(question.ids))
    assert question.shortened == len(TOKENIZER.encode(question.text)) - 54
    with pytest.raises(ValueError, match="max_new_tokens=64 leaves 0 of the model's 64 tokens"):
        generation.questions([record], template, model, TOKENIZER, 64)


def test_the_stop_rate_counts_answers_that_the_budget_ended():
    record = Record(
        instruction="Say it",
        output="it",
        positive=(Demonstration("a", "it"), Demonstration("b", "it")),
    )
    asked = [generation.Question([1], "Say it", record, ("it",))] * 4
    given = [
        generation.Answer("it", True),
        generation.Answer("it it", False),
        generation.Answer("", True),
        generation.Answer("it", True),
    ]
    found = generation.scored(asked, given, scores.chosen("exact_match,f1"))
    assert found["stop_rate"].mean() == 0.75 and found["exact_match"].tolist() == [1, 0, 0, 1]
    assert found["f1"].tolist() == pytest.approx([1, 2 / 3, 0, 1])
    copied = generation.baselines(asked, scores.chosen("exact_match"))
    assert copied["copy demonstration"]["exact_match"].tolist() == [1.0] * 4
    # Copies "Say it", since there is no input.
    assert copied["copy input"]["exact_match"].tolist() == [0.0] * 4


def task_file(path, answers, *categories):
    """Write a Super-NaturalInstructions task with these answers."""
    instances = [
        {"input": f"{path.stem} {n}", "output": [answer]} for n, answer in enumerate(answers)
    ]
    path.write_text(
        json.dumps(
            {"Definition": ["Say it."], "Instances": instances}
            | ({"Categories": [*categories]} if categories else {})
        )
    )


def test_a_category_is_not_the_mean_of_all_answers_of_its_tasks(
    folder, tmp_path, capsys, monkeypatch
):
    (tasks := tmp_path / "tasks").mkdir()
    task_file(tasks / "task1_a.json", ["a b", "c d", "e f"], "Word Analogy")
    # Only the first category counts.
    task_file(tasks / "task2_b.json", ["a b c"] * 5, "Title Generation", "Word Analogy")
    task_file(tasks / "task3_c.json", ["x"] * 2, "Word Analogy")
    task_file(tasks / "task4_d.json", ["a"] * 4)
    given = ["a b", "c", "", "a b c", "a", "c b a", "b c", "no", "x", "y", "a", "b", "a", "a"]
    monkeypatch.setattr(
        generation,
        "answers",
        lambda *_, **__: [generation.Answer(text, bool(text)) for text in given],
    )
    args = [
        f"--model={folder}/run",
        f"--examples={tasks}",
        "--max-new-tokens=6",
        "--metrics=exact_match,rouge_l",
    ]
    assert (
        evaluate.main(
            [*args, f"--answers={tmp_path}/answers.jsonl", f"--json={tmp_path}/numbers.json"]
        )
        == 0
    )
    said, found = capsys.readouterr().out, json.loads((tmp_path / "numbers.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert (
        set(found["categories"]) == {"Title Generation", "Word Analogy"}
        and found["all"]["answers"] == len(rows) == 14
    )
    for name, names in (
        ("Title Generation", ("task2_b",)),
        ("Word Analogy", ("task1_a", "task3_c")),
    ):
        line, inside = found["categories"][name], [row for row in rows if row["task"] in names]
        assert line["answers"] == len(inside) == 5
        for metric in ("exact_match", "rouge_l"):
            assert line["scores"][metric] == pytest.approx(
                100 * sum(row[metric] for row in inside) / 5
            )
        assert line["scores"]["stop_rate"] == 100 * sum(row["stopped"] for row in inside) / 5
    # "a b" and "x" are right: 2 of 5 answers, not a mean over two tasks.
    assert found["categories"]["Word Analogy"]["scores"]["exact_match"] == pytest.approx(40)
    table = said.split("by category\n\n")[1]
    assert "| Word Analogy" in table and "40.0 [" in table and "task1_a" not in table
    # The bootstrap resamples whole tasks.
    assert found["categories"]["Word Analogy"]["intervals"]["exact_match"] == pytest.approx(
        [100 / 3, 50]
    )


def test_data_without_categories_has_a_table_of_them(folder, capsys):
    assert (
        evaluate.main(
            [
                f"--model={folder}/run",
                f"--examples={folder}/x.jsonl",
                "--max-new-tokens=2",
                "--metrics=f1",
            ]
        )
        == 0
    )
    assert "category" not in capsys.readouterr().out


def test_the_fixed_records_are_those_of_the_first_task_alone():
    assert generation.spread(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert generation.spread([1, 2], 5) == [1, 2] == generation.spread([1, 2], 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = small.MODEL.replace(vocab_size=320, n_layers=1, max_length=256, eos_token_ids=(0,))
    model_files.save_model(folder / "run", config, TOKENIZER, templates.get("alpaca", TOKENIZER))
    writer = Checkpoints(folder / "run", keep=1)
    model, adamw, _ = small.parts(config)
    state = create_state(model, adamw, small.mesh_of(1, 1, 1), 0, params=drawn(model))
    writer.save(1, state, {})
    writer.close()
    return folder


def test_the_command_asks_otherwise_than_the_run_was_trained(folder, capsys):
    args = [
        f"--model={folder}/run",
        f"--examples={folder}/x.jsonl",
        "--max-new-tokens=6",
        "--metrics=exact_match,rouge_l",
    ]
    assert evaluate.main([*args, "--baselines", f"--answers={folder}/answers.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["template"]["name"] == "alpaca" and found["answers"] == 5
    model, params, _ = run_weights.load_params(folder / "run")
    template = templates.get("alpaca", TOKENIZER)
    asked = generation.questions(
        read(f"{folder}/x.jsonl", Reading(), "all").records, template, model, TOKENIZER, 6
    )
    given = generation.answers(model, params, TOKENIZER, asked, 6, template)
    values = generation.scored(asked, given, scores.chosen("exact_match,rouge_l"))
    assert found["all"]["scores"] == pytest.approx(
        {name: 100 * float(np.mean(x)) for name, x in values.items()}
    )
    assert set(found["baselines"]) == {"copy input", "copy demonstration"}
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [answer.text for answer in given] and rows[3][
        "references"
    ] == ["3"]
    assert rows[0]["prompt"].startswith("Below is an instruction")
    assert evaluate.main([*args, "--template=tulu", "--force-template"]) == 0
    assert "template tulu" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, said",
    [
        (["--template=tulu"], "was trained with the template 'alpaca'"),
        (["--template=tulus"], "did you mean 'tulu'"),
        (["--metrics=meteor"], "metric 'meteor' is unknown"),
        (["--examples=nowhere.jsonl"], "no file matches"),
        (["--data=x.txt"], "and not both"),
        (["--max-new-tokens=0"], "expected at least 1"),
        (["--cap=-1"], "--cap=-1: expected at least 0"),
        (
            ["--template=tk_instruct", "--template-options=[1]"],
            "--template-options=[1]: expected a JSON object",
        ),
        (["--max-new-tokens=300"], "leaves -44 of the model's 256 tokens"),
    ],
)
def test_bad_input_ends_in_a_stack_trace(folder, capsys, more, said):
    assert evaluate.main([f"--model={folder}/run", f"--examples={folder}/x.jsonl", *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error


ASK = {"role": "user", "content": "Which?"}
THINKING = CHATML.replace(
    "{{ '<|im_start|>'", "{% set r = m.reasoning_content %}{{ '<|im_start|>'"
).replace(
    "m['content']", "('<think>\n' + r + '\n</think>\n\n' if r and loop.last else '') + m['content']"
)


def asked_of(tmp_path, *rows):
    """(what is read, questions) with a template that shows the reasoning of the last turn only."""
    tokenizer = with_control(tokenizers.bytes_only(), THINKING)
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, _ = make("gpt2", vocab_size=320, max_length=512)
    found = read(str(tmp_path / "x.jsonl"), Reading(), "all")
    template = templates.get("jinja", tokenizer)
    return found, generation.questions(found.records, template, model, tokenizer, 8)


def test_a_reference_or_an_answer_holds_reasoning(tmp_path, monkeypatch):
    said = lambda text, **more: {"role": "assistant", "content": text, **more}
    turns = [ASK, said("Blue.", reasoning_content="Sky?"), ASK]
    found, asked = asked_of(
        tmp_path,
        {"messages": [ASK, said("Red.", reasoning_content="Roses?")]},
        {"messages": [ASK, said("<think>\nRoses?\n</think>\n\nRed.")], "source": "web"},
        {"messages": [*turns, said("Red. <think> is a tag.")]},
        {"messages": [ASK, said("Roses?</think>Red.")]},
    )
    assert [question.references for question in asked] == [
        ("Red.",),
        ("Red.",),
        ("Red. <think> is a tag.",),
        ("Red.",),
    ]
    assert (
        "Blue." in asked[2].text and "Sky?" not in asked[2].text
    )  # as the template renders earlier turns
    assert records.notes(found, generation.unscored(found.records)) == [
        "1 records with the unread field 'source', which is ignored",
        "1 references with the field 'reasoning_content', which is not compared",
    ]
    said_by_model = [
        "<think>\nRoses?\n</think>\n\nRed.",
        "Red.",
        "<think>\nRoses",
        "Roses?</think> Red.",
    ]
    monkeypatch.setattr(generation, "generate", lambda *_, **__: said_by_model)
    monkeypatch.setattr(generation, "decoded", lambda _, text: text)
    monkeypatch.setattr(templates, "stop_id", lambda *_: 0)
    given = generation.answers(make("gpt2")[0], {}, None, asked, 8, None)
    assert [answer.text for answer in given] == ["Red.", "Red.", "", "Red."]
    assert [answer.reasoning for answer in given] == ["Roses?", "", "Roses", "Roses?"]
    generation.write_answers(tmp_path / "answers.jsonl", asked, given, {})
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row.get("reasoning") for row in rows] == ["Roses?", None, "Roses", "Roses?"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"content": "Look.", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]},
            "makes tool calls",
        ),
        ({"content": "<think>\nRoses?\n</think>"}, "no answer to score against"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_compared_is_compared(tmp_path, answer, message):
    with pytest.raises(DataError, match=f"x.jsonl, line 1: .*{message}"):
        asked_of(tmp_path, {"messages": [ASK, {"role": "assistant", **answer}]})


def test_the_command_says_nothing_of_fields_that_it_does_not_use(folder, tmp_path, capsys):
    (tmp_path / "y.jsonl").write_text(json.dumps(ROWS[0] | {"mood": "x"}))
    args = [
        f"--model={folder}/run",
        f"--examples={tmp_path}/y.jsonl",
        "--max-new-tokens=2",
        "--metrics=f1",
        "--json",
    ]
    assert evaluate.main(args) == 0
    said = capsys.readouterr()
    note = "1 records with the unread field 'mood', which is ignored"
    assert f"warning: {note}" in said.err and json.loads(said.out)["warnings"] == [note]
