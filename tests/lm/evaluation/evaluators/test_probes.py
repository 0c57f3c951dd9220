"""Probes: what they count, their intervals, and the same figures in a run and in lm.evaluate."""

import dataclasses
import json
import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from lm import evaluate
from lm.data.read.sources import DataError
from lm.evaluation.accuracy import wilson
from lm.evaluation.evaluators import EVALUATORS, condition
from lm.models.config import ConfigError
from lm.training import loop, settings
from tests.lm.training import runs

FACTS = [
    {"prompt": "A is in", "answer": "x", "candidates": ["y", "z"], "group": "head"},
    {"prompt": "B is in", "answer": "y", "candidates": ["x", "y"], "group": "head"},
    {"prompt": "C is in", "answer": "z", "candidates": ["x"], "group": "tail"},
]
PAIRS = [
    {"sentence_good": "The dog sleeps.", "sentence_bad": "The dog sleep.", "UID": "a"},
    {"sentence_good": "Dogs sleep.", "sentence_bad": "Dogs sleeps.", "UID": "b"},
    {"sentence_good": "He goes", "sentence_bad": "He goes there", "UID": "b"},
]
TEXTS = [
    {"prompt": "The 1 of 7", "completion": "lies here", "task": "a"},
    {"prompt": "The 2", "completion": "é", "task": "b"},
]
ROWS = {"facts": FACTS, "pairs": PAIRS, "bits": TEXTS, "completions": TEXTS}


class Told:
    """A book whose log-probabilities and texts are given. asked: what it was asked."""

    bytes = 5

    def __init__(self, scores=(), texts=()):
        self.scores, self.texts, self.asked = scores, texts, []
        self.tools = type("Tools", (), {"template": None})

    def log_probs(self, asked):
        self.asked = [(question.prompt, text) for question, text in asked]
        return [np.array([score / 2, score / 2]) for score in self.scores]

    def write(self, questions, most):
        return self.texts[: len(questions)]

    def continuation(self, text, question):
        return list(text)


def measured(name, book):
    return EVALUATORS[name](files="x").measure(book, ROWS[name])[0]


def test_the_right_answer_is_ranked_among_others_than_the_candidates():
    book = Told([-1, -2, -3, -2, -1, -1, -1], ["x and", "yes", "Z."])
    found = measured("facts", book)
    assert book.asked[:3] == [("A is in", "x"), ("A is in", "y"), ("A is in", "z")]
    assert book.asked[3:5] == [("B is in", "y"), ("B is in", "x")]
    assert (found["head"], found["head_n"]) == (0.5, 2) and found["tail"] == 0.0  # a tie is no hit
    assert (found["head_low"], found["head_high"]) == wilson(1, 2)
    assert found["all"] == pytest.approx(1 / 3) and found["all_n"] == 3
    assert found["reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["head_exact"] == 0.5 and found["tail_exact"] == 1.0  # "yes" is not "y"


def test_what_two_sentences_begin_with_is_scored():
    book = Told([-1, -2, -2, -1, -1, -2])
    found = measured("pairs", book)
    assert book.asked[:2] == [("The dog", "sleeps."), ("The dog", "sleep.")]
    assert book.asked[4:] == [("He", "goes"), ("He", "goes there")]  # both go on
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_low"] <= 0.5 and found["accuracy_high"] == 1.0  # paradigms: 1 and 1/2


def test_bits_are_not_divided_by_the_bytes_of_the_completions():
    found = measured("bits", Told([-9 * math.log(2), -4 * math.log(2)]))
    assert found["bits_per_byte"] == pytest.approx(13 / (9 + 2))
    assert found["bits_per_byte_low"] <= 13 / 11 <= found["bits_per_byte_high"]


def test_an_answer_has_another_score_than_its_rouge_l():
    found = measured("completions", Told(texts=["lies there", "é"]))
    # ROUGE's own tokens are Latin: the second answer has none. The two are of different tasks.
    assert found["rouge_l"] == pytest.approx(25) and found["exact_match"] == pytest.approx(50)
    assert (found["rouge_l_low"], found["rouge_l_high"], found["rouge_l_n"]) == (0, 50, 2)


def test_a_run_and_the_command_find_other_values(tmp_path, capsys):
    evals = {}
    for name, rows in ROWS.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        evals[name] = {"type": name, "files": str(file)}
    evals["facts"]["write"] = False  # generation is slow to compile
    c = runs.config(tmp_path, **{"steps": 2, "checkpoint.every": 2})
    c.evals = ConfigDict(evals)
    assert loop.train(c, tmp_path / "run") == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    of_run = {k: v for row in rows for k, v in row.items() if k.startswith("eval/")}
    capsys.readouterr()
    assert evaluate.main([f"--model={tmp_path / 'run'}", "--evals", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ROWS:
        for value, number in found[name].items():
            if value != "seconds":
                assert number == of_run[f"eval/{name}/{value}"], (name, value)
    assert found["bits"]["bits_per_byte"] > 1 and found["facts"]["bytes"] == 0
    assert found["facts"]["all_n"] == 3 and found["pairs"]["accuracy_n"] == 3


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"type": "facts"}, "evals.x.files is not set"),
        ({"type": "bits", "files": "y", "max_examples": -1}, "evals.x.max_examples=-1"),
        ({"type": "pairs", "files": "y", "condition": {"type": "open"}}, "condition.type='open'"),
        ({"type": "pairs", "files": "y", "condition": {"k": 1}}, "condition.k: the condition"),
        ({"type": "pairs", "files": "y", "condition": 3}, "condition=3: expected fields"),
        ({"type": "completions", "files": "y", "max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_a_wrong_section_is_not_refused(section, said, tmp_path):
    c = runs.config(tmp_path)
    c.evals = ConfigDict({"x": section})
    with pytest.raises(ConfigError) as refused:
        settings.check(c, 8)
    assert said in str(refused.value) and str(refused.value).startswith("evals.x.")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("facts", {"prompt": "A", "answer": "x"}, "line 1: no 'candidates'"),
        ("bits", {"prompt": "A"}, "line 1: no 'completion'"),
        ("pairs", ["x"], "line 1: no 'sentence_good'"),
    ],
)
def test_a_row_without_a_field_is_read(name, row, said, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as refused:
        EVALUATORS[name](files=str(file)).rows()
    assert said in str(refused.value)


def test_a_fact_has_no_wrong_answer():
    rows = [{"prompt": "A", "answer": "x", "candidates": ["x"]}]
    with pytest.raises(DataError, match="no other answer"):
        EVALUATORS["facts"](files="x").measure(Told(), rows)


def test_a_condition_is_not_its_own_dataclass():
    assert dataclasses.is_dataclass(condition.of({})) and condition.of({}) == condition.ClosedBook()
