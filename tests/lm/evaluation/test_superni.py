"""Super-NaturalInstructions: prompts, scores and baselines of the paper."""

import json
from typing import Any

import jax
import numpy as np
import pytest

import lm
from lm import evaluate
from lm.data import templates, tokenizers
from lm.evaluation import generation, superni
from lm.families import preset
from tests.lm.models.test_model import make

TOKENIZER: Any = tokenizers.bytes_only()
WORDS = ("the cat runs", "a dog ran home", "yes", "no", "Running dogs, running cats!", "é")


def task(category, n, *, outputs, positive=2, seed=0):
    """Task file with n instances whose outputs take turns."""
    rng = np.random.default_rng(seed)
    return {
        "Categories": [category, "Another"],
        "Definition": [f"Answer as in {category} {seed}"],
        "Positive Examples": [
            {"input": f"in {i}", "output": f"out {i}!", "explanation": "so"}
            for i in range(positive)
        ],
        "Negative Examples": [],
        "Instances": [
            {
                "id": f"i{i}",
                "input": rng.choice(WORDS) + f" {i}",
                "output": outputs[i % len(outputs)],
            }
            for i in range(n)
        ],
    }


def write(folder, **tasks):
    """Write tasks and a split's list of them; return the list."""
    (folder / "tasks").mkdir(parents=True)
    (folder / "splits" / "default").mkdir(parents=True)
    for name, content in tasks.items():
        (folder / "tasks" / f"{name}.json").write_text(json.dumps(content))
    (names := folder / "splits" / "default" / "test_tasks.txt").write_text("\n".join(tasks))
    return names


@pytest.fixture
def tasks(tmp_path):
    return write(
        tmp_path / "ni",
        task001_a=task("Textual Entailment", 6, outputs=(["yes"], ["no"])),
        task002_b=task("Word Analogy", 4, outputs=(["out 0"],), seed=1),
        task003_c=task(
            "Title Generation", 103, outputs=(["cats run", "a dog ran"], ["dogs"]), seed=2
        ),
        task004_d=task("Textual Entailment", 30, outputs=(["no", "never"],), seed=3),
    )


@pytest.fixture
def loaded(monkeypatch):
    """Function that makes lm.evaluate find a model and the description of a template."""

    def found(model=None, params=None, template=None, **more):
        model = model or lm.build(preset("gpt2", "tiny", vocab_size=257, **more))
        monkeypatch.setattr(superni, "load", lambda *_: (model, params or {}, TOKENIZER))
        monkeypatch.setattr(superni, "kept_template", lambda _: template)

    return found


def run(tasks, tmp_path, *more):
    """Numbers of a run of the command."""
    (output := tmp_path / "numbers.json").unlink(missing_ok=True)
    assert evaluate.main([f"--superni={tasks}", f"--json={output}", *more]) == 0
    return json.loads(output.read_text())


def instances(tasks, name, most=100):
    content = json.loads((tasks.parents[2] / "tasks" / f"{name}.json").read_text())
    return content["Instances"][:most]


NAMES = ("task001_a", "task002_b", "task003_c", "task004_d")


def say(monkeypatch, answer):
    """Replace generation: the answer is a function of the record."""
    monkeypatch.setattr(
        generation,
        "answers",
        lambda *args, **_: [generation.Answer(answer(q.record), True) for q in args[3]],
    )


def test_scores_are_not_those_of_the_packages_of_the_paper(
    tasks, tmp_path, loaded, monkeypatch, capsys
):
    from rouge_score.rouge_scorer import RougeScorer

    loaded(max_length=1152)
    say(monkeypatch, lambda record: f"The {record.input}")
    found = run(tasks, tmp_path, "--model=x")
    assert (found["track"], found["tasks"], found["answers"]) == ("default", 4, 140)
    assert list(found["systems"]) == ["def", "def-pos", "copy input", "copy demonstration"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    wanted = {
        name: [
            max(
                scorer.score(reference, f"The {row['input']}")["rougeL"].fmeasure
                for reference in row["output"]
            )
            for row in instances(tasks, name)
        ]
        for name in NAMES
    }
    system = found["systems"]["def-pos"]
    mean = lambda *names: 100 * np.mean([x for name in names for x in wanted[name]])
    assert system["all"]["scores"]["rouge_l"] == pytest.approx(mean(*NAMES)) and mean(*NAMES) > 1
    assert {name: x["rouge_l"] for name, x in system["tasks"].items()} == pytest.approx(
        {name: mean(name) for name in NAMES}
    )
    # Over instances, not over tasks: 6 and 30 of them.
    entailment = system["categories"]["Textual Entailment"]
    assert entailment["answers"] == 36
    assert entailment["scores"]["rouge_l"] == pytest.approx(mean("task001_a", "task004_d"))
    said = capsys.readouterr()
    assert "4 tasks, 140 instances; greedy, at most 128 tokens" in said.out
    rows = {line.split("|")[1].strip(): line for line in said.out.splitlines() if "|" in line}
    assert "| exact_match |" in rows["Word Analogy"] and "| rouge_l " in rows["Title Generation"]
    assert found["category_metrics"]["Textual Entailment"] == "exact_match"
    assert "warning: the model has room" not in said.err


def test_intervals_do_not_draw_whole_tasks(tasks, tmp_path, loaded, monkeypatch):
    loaded(max_length=1152)
    say(monkeypatch, lambda record: "No!" if record.task == "task004_d" else "what")
    found = run(tasks, tmp_path, "--model=x", "--encodings=def")["systems"]["def"]
    line = found["categories"]["Textual Entailment"]
    assert line["scores"]["exact_match"] == pytest.approx(100 * 30 / 36)
    assert line["intervals"]["exact_match"] == [0, 100]  # either task alone


def test_the_baselines_need_a_model_or_copy_something_else(tasks, tmp_path, capsys):
    found = run(tasks, tmp_path)["systems"]
    assert list(found) == ["copy input", "copy demonstration"]
    copied = found["copy demonstration"]  # "out 0!", the first positive example's
    assert copied["categories"]["Word Analogy"]["scores"] == {"exact_match": 100, "rouge_l": 100}
    assert copied["all"]["scores"]["exact_match"] == pytest.approx(100 * 4 / 140)
    rows = instances(tasks, "task001_a")
    # "yes 0" for "yes": precision 1/2, recall 1.
    right = [row["input"].rsplit(" ", 1)[0] in row["output"] for row in rows]
    assert sum(right) and found["copy input"]["tasks"]["task001_a"] == {
        "rouge_l": pytest.approx(100 * 2 / 3 * sum(right) / 6),
        "exact_match": 0,
    }
    assert run(tasks, tmp_path, "--cap=2")["answers"] == 8
    assert run(tasks, tmp_path, "--cap=0")["answers"] == 143
    (tasks.parents[2] / "tasks" / "task002_b.json").write_text(
        json.dumps(task("Word Analogy", 4, outputs=(["out 0"],), positive=0))
    )
    capsys.readouterr()
    assert list(run(tasks, tmp_path)["systems"]) == ["copy input"]
    assert "1 tasks have no positive example, such as task002_b" in capsys.readouterr().err


DEFINITION = "Definition: Answer as in Word Analogy 1.\n\n"
EXAMPLES = " Positive Example 1 -\nInput: in 0.\n Output: out 0!\n\n"
EXAMPLES += " Positive Example 2 -\nInput: in 1.\n Output: out 1!\n\n"
ASK = "Now complete the following example -\nInput: {}.\nOutput: "


def test_an_encoding_is_not_that_of_tk_instruct(tasks, tmp_path, loaded, monkeypatch):
    loaded(max_length=1152)
    say(monkeypatch, lambda record: "it")
    run(tasks, tmp_path, "--model=x", f"--answers={tmp_path}/answers.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 280
    for name, before in (("def", DEFINITION), ("def-pos", DEFINITION + EXAMPLES)):
        mine = [r for r in rows if (r["encoding"], r["task"]) == (name, "task002_b")]
        asked = [row["input"] for row in instances(tasks, "task002_b")]
        assert sorted(row["prompt"] for row in mine) == sorted(
            before + ASK.format(x) for x in asked
        )
        assert mine[0]["references"] == ["out 0"] and mine[0]["category"] == "Word Analogy"


def test_prompts_that_do_not_fit_are_cut_in_silence(tasks, tmp_path, loaded, monkeypatch, capsys):
    alpaca = templates.remember(templates.get("alpaca", TOKENIZER))
    # The definition and the question take 103 to 129 bytes, and each example about 45.
    loaded(max_length=200, template=alpaca)
    say(monkeypatch, lambda record: "it")
    args = ("--model=x", "--max-new-tokens=10", f"--answers={tmp_path}/answers.jsonl")
    found = run(tasks, tmp_path, *args)["systems"]
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    shown = [row["prompt"].count("Positive Example") for row in rows if row["encoding"] != "def"]
    assert found["def-pos"]["prompts_with_fewer_examples"] == sum(n < 2 for n in shown) == 140
    assert found["def-pos"]["cut_prompts"] == 0 and max(shown) == 1
    assert max(len(row["prompt"].encode()) for row in rows) <= 190
    error = capsys.readouterr().err
    assert "def-pos: 140 of 140 prompts show fewer than 2 examples" in error
    assert "the model has room for 190 tokens of a prompt, and the paper gives 1,024" in error
    assert "x was trained with the template 'alpaca', and is asked with 'tk_instruct'" in error
    loaded(max_length=90)
    found = run(tasks, tmp_path, *args[:2], "--encodings=def")["systems"]
    assert found["def"]["cut_prompts"] == 140
    assert "def: 140 of 140 prompts are cut at their end" in capsys.readouterr().err


@pytest.mark.parametrize("name, encodings", [("gpt2", "def"), ("t5", "def-pos")])
def test_answers_are_not_those_of_the_model_or_are_made_twice(
    tasks, tmp_path, loaded, monkeypatch, capsys, name, encodings
):
    start = {"decoder_start_token_id": 1} if name == "t5" else {}
    model, params = make(name, vocab_size=257, max_length=300, n_layers=1, **start)
    loaded(model, params)
    file = tmp_path / "answers.jsonl"
    args = ("--model=x", "--cap=1", "--max-new-tokens=4", f"--answers={file}")
    args = (*args, f"--encodings={encodings}")
    first = run(tasks, tmp_path, *args)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["encoding"] for row in rows] == [encodings] * 4
    asked = [TOKENIZER(row["prompt"])["input_ids"] for row in rows]
    said = lm.generate(model, params, asked, 4, stop_tokens=[TOKENIZER.eos_token_id])
    said = [TOKENIZER.decode(ids, clean_up_tokenization_spaces=False).strip() for ids in said]
    assert [row["answer"] for row in rows] == said and any(said)
    # A row that was being written is asked again, the others are not.
    again = []
    monkeypatch.setattr(
        generation, "generate", lambda *args, **_: again.extend(args[2]) or [[65]] * len(args[2])
    )
    assert run(tasks, tmp_path, *args) == first and not again
    file.write_text("".join(json.dumps(row) + "\n" for row in rows)[:-20])
    run(tasks, tmp_path, *args)
    assert again == asked[-1:] and "3 of 4 answers are read from" in capsys.readouterr().err
    assert len((before := file.read_text()).splitlines()) == 4
    loaded(model, jax.tree.map(lambda x: 1.01 * x, params))
    assert evaluate.main([f"--superni={tasks}", *args]) == 2
    assert "holds answers of another model" in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize(
    "args, said",
    [
        (["--superni=nowhere.txt"], "no file matches"),
        (["--encodings=def,defpos"], "'defpos' is unknown (did you mean 'def-pos'?)"),
        (["--template=alpaca"], "--template is of --examples"),
        (["--max-examples=3"], "--max-examples is of --examples"),
        (["--examples=x.jsonl"], "give one of --data=FILES"),
        (["--model=", "--encodings=def"], "are of a model: give --model too"),
        (["--cap=-1"], "--cap=-1: expected at least 0"),
        ([], "1 tasks have no positive example, such as task002_b, and the encoding 'def-pos'"),
    ],
)
def test_bad_input_ends_in_a_stack_trace(tmp_path, loaded, capsys, args, said):
    tasks = write(
        tmp_path,
        task001_a=task("A", 2, outputs=(["yes"],)),
        task002_b=task("B", 2, outputs=(["yes"],), positive=0),
    )
    loaded()
    assert evaluate.main([f"--superni={tasks}", "--model=x", *args]) == 2
    error = capsys.readouterr().err
    assert "error: " in error and said in error


def test_a_model_is_missing_without_a_word(capsys):
    assert evaluate.main(["--data=x.txt"]) == 2
    assert "give --model" in capsys.readouterr().err
    assert evaluate.main(["--model=x", "--data=x.txt", "--encodings=def"]) == 2
    assert "--encodings is of --superni" in capsys.readouterr().err
