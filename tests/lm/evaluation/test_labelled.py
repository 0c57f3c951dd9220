"""Runs with labels, from config to scores: heads, label names, export, predictions and entities."""

import json

import numpy as np
import pytest
import transformers

import lm
from configs import qa_single_task, smoke
from lm import evaluate, label, tasks
from lm.evaluation import predictions
from lm.models.config import ConfigError
from lm.training import loop, settings, trackers
from lm.weights.runs import weights as run_weights
from tests.lm.training import runs


@pytest.mark.parametrize("seed", range(5))
def test_entities_differ_from_those_found_by_trying_every_span(seed):
    rng = np.random.default_rng(seed)
    names = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    tags = [names[i] for i in rng.integers(0, 5, 30)]
    tried = set()
    for kind in "XY":
        for i in range(30):
            begins = tags[i] == f"B-{kind}" or (
                tags[i] == f"I-{kind}" and (i == 0 or tags[i - 1][2:] != kind)
            )
            for j in range(i + 1, 31):
                inside = all(tag == f"I-{kind}" for tag in tags[i + 1 : j])
                if begins and inside and (j == 30 or tags[j] != f"I-{kind}"):
                    tried.add((kind, i, j))
    assert predictions.entities(tags) == tried
    other = [names[i] for i in rng.integers(0, 5, 30)]
    found, right = predictions.entity_f1([tags], [other]), len(tried & predictions.entities(other))
    assert found["recall"] == right / len(tried) and found["precision"] == right / len(
        predictions.entities(other)
    )


def test_the_recipe_does_not_learn_its_answers_or_scores_others(tmp_path, capsys):
    config = qa_single_task.get_config("tiny")
    config.data.cache, config.log.tensorboard = str(tmp_path / "cache"), False
    assert loop.train(config, tmp_path / "run") == 0
    rows = trackers.read(tmp_path / "run")
    last = next(row for row in reversed(rows) if "eval/heldout/loss" in row)
    assert last["eval/heldout/loss"] < 0.5 and last["eval/heldout/exact"] > 0.8
    arguments = [
        f"--model={tmp_path / 'run'}",
        "--data=configs/examples/questions.json",
        "--task=question_answering",
    ]
    assert evaluate.main([*arguments, f"--predictions={tmp_path / 'p.jsonl'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        found["exact_match"] > 80 and found["f1"] >= found["exact_match"] and found["records"] == 18
    )
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert 100 * np.mean([line["exact_match"] for line in lines]) == pytest.approx(
        found["exact_match"]
    )
    assert evaluate.main([arguments[0], arguments[1], "--task=classification"]) == 2
    assert "needs a model with head='sequence_classification'" in capsys.readouterr().err


def test_a_model_of_texts_does_not_take_a_head_or_loses_the_names_of_its_labels(tmp_path, capsys):
    loop.train(
        runs.config(tmp_path, **{"steps": 4, "length": 64, "model.max_length": 64}),
        tmp_path / "base",
    )
    for task, files, field in (
        ("classification", "topics.jsonl", "text"),
        ("token_classification", "names.jsonl", "tokens"),
    ):
        changes = {
            "task": tasks.defaults(task, field=field),
            "init_from": str(tmp_path / "base"),
            "tokenizer": "",
            "length": 64,
            "steps": 4,
        }
        config = runs.config(tmp_path, **changes, **{"data.files": f"configs/examples/{files}"})
        loop.train(config, tmp_path / task)
        model, params, _ = run_weights.load_params(tmp_path / task)
        wanted = (
            ("animal", "food", "weather")
            if task == "classification"
            else ("B-LOC", "B-PER", "I-LOC", "O")
        )
        assert model.config.label_names == wanted
        lm.to_hf(model, params, tmp_path / "hf")
        assert (
            tuple(transformers.AutoConfig.from_pretrained(tmp_path / "hf").id2label.values())
            == wanted
        )
        arguments = [
            f"--model={tmp_path / task}",
            f"--data=configs/examples/{files}",
            f"--task={task}",
            f"--predictions={tmp_path / 'predictions.jsonl'}",
            "--json",
        ]
        assert evaluate.main(arguments) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (
            0 <= found["accuracy"] <= 1
            and set(found["f1"]) <= set(wanted)
            and ("entities" in found) == (task != "classification")
        )
        check_label(tmp_path, arguments[:2], task, capsys)


def check_label(tmp_path, arguments, task, capsys):
    """lm.label says what lm.evaluate predicted, of records and of lines."""
    read = lambda name: [json.loads(x) for x in (tmp_path / name).read_text().splitlines()]
    assert label.main([*arguments, f"--output={tmp_path / 'out.jsonl'}"]) == 0
    predicted, found = read("predictions.jsonl"), read("out.jsonl")
    capsys.readouterr()
    if task == "classification":
        assert [(row["text"], row["label"]) for row in found] == [
            (row["text"], row["predicted"]) for row in predicted
        ]
        return
    assert [(row["words"], row["tags"]) for row in found] == [
        (row["words"], row["predicted"]) for row in predicted
    ]
    assert all(1 / 4 < p <= 1 for row in found for p in row["probabilities"])
    (tmp_path / "new.txt").write_text("".join(" ".join(row["words"]) + "\n" for row in found))
    assert label.main([arguments[0], f"--data={tmp_path / 'new.txt'}"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found
    assert label.main([*arguments, "--pair-field=x"]) == 2
    assert "tags the words of one text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": tasks.defaults("next_token").unlock(), "task.label_field": "x"},
            r"task\.label_field: the task 'next_token' has no such field.*classification",
        ),
        (
            {"task.stride": 8},
            r"task\.stride: the task 'classification' has no such field.*next_token, question",
        ),
        ({"task.template": "plain"}, r"task\.template: .* no such field.*of the tasks instruct"),
        (
            {"task.labels": ("a",)},
            r"task\.labels=.*at least two",
        ),
        (
            {
                "task.labels": ("a", "b"),
                "task.regression": True,
            },
            r"values have none",
        ),
        (
            {"task.label_smoothing": 0.1},
            r"task\.label_smoothing: the task 'classification' has no such field",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_accepted(changes, message):
    config = smoke.get_config("classification,bert")
    with config.unlocked():
        for name, value in changes.items():
            section, _, field = name.rpartition(".")
            (config[section] if section else config)[field] = value
    with pytest.raises(ConfigError, match=message):
        settings.check(config, 8)
