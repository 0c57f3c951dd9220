"""Evaluators: config.evals in a run, the same figures from lm.evaluate, and a user's own."""

import json

import pytest
from ml_collections import ConfigDict

from lm import evaluate
from lm.evaluation.evaluators import Result
from lm.models.config import ConfigError
from lm.training import loop, settings
from tests.lm.evaluation.evaluators import own_repeats
from tests.lm.training import runs

OWN = "tests.lm.evaluation.evaluators.own_repeats:Repeats"


def config(folder, evals, **changes):
    c = runs.config(folder, **{"steps": 4, "checkpoint.every": 2, "eval.every": 2, **changes})
    c.evals = ConfigDict(evals)
    return c


def rows(folder, name):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines) if f"eval/{name}" in row}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with evaluators of every kind, each at its own interval."""
    folder = tmp_path_factory.mktemp("run")
    text = runs.text(folder, "held.txt")
    evals = {
        "often": {"type": "rows", "files": text, "every": 1},
        "first": {"type": "rows", "files": text, "max_rows": 2, "every": 3},
        "own": {"type": OWN, "prompts": ("The 1", "of 7"), "every": 0},
        "drawn": {"type": "samples", "prompts": ("The 3",), "tokens": 3},
    }
    c = config(folder, evals, **{"eval.data.heldout": text})
    assert loop.train(c, folder / "run") == 0
    return folder / "run"


def test_an_evaluator_runs_at_another_step_or_finds_other_values(run):
    assert [*rows(run, "often/loss")] == [1, 2, 3, 4]
    assert [*rows(run, "first/loss")] == [3, 4]
    assert [*rows(run, "own/repeats")] == [4] and [*rows(run, "heldout/loss")] == [2, 4]
    often, heldout = rows(run, "often/loss"), rows(run, "heldout/loss")
    for step, row in heldout.items():
        assert row["eval/heldout/loss"] == often[step]["eval/often/loss"]
        assert row["eval/heldout/bits_per_byte"] == often[step]["eval/often/bits_per_byte"]
    assert "**The 3**" in (run / "samples.md").read_text()


def test_the_command_finds_other_values_than_the_run(run, capsys):
    assert evaluate.main([f"--model={run}", "--evals", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = {name: row for name in ("often", "own") for row in [rows(run, f"{name}/loss").get(4)]}
    assert found["step"] == 4 and found["often"]["loss"] == last["often"]["eval/often/loss"]
    assert found["heldout"]["loss"] == found["often"]["loss"]
    assert found["own"]["repeats"] == rows(run, "own/repeats")[4]["eval/own/repeats"]
    assert evaluate.main([f"--model={run}", "--evals=own,first"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("own: repeats 0.") and "first: loss" in said and "often" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--evals=oftn"], "no such evaluation (did you mean 'often'?)"),
        (["--evals", "--data=x"], "give one of --data=FILES"),
    ],
)
def test_a_wrong_name_of_an_evaluation_is_taken(run, flags, said, capsys):
    assert evaluate.main([f"--model={run}", *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"every": 3}, r"evals\.x=.*expected fields: type"),
        ({"type": "row"}, r"evals\.x\.type='row' is unknown.*did you mean 'rows'"),
        ({"type": "rows", "file": "x"}, r"evals\.x\.file: .*no such field .did you mean 'files'"),
        ({"type": "rows"}, r"evals\.x\.files is not set"),
        ({"type": "rows", "files": "x", "every": -1}, r"evals\.x\.every=-1"),
        ({"type": "samples", "prompts": ("a",), "tokens": 0}, r"evals\.x\.tokens=0"),
        ({"type": "answers", "files": "x"}, r"evals\.x\.files='x': questions are rendered by a"),
        ({"type": OWN}, r"evals\.x\.prompts is not set"),
        ({"type": "no.such:Thing"}, r"evals\.x\.type='no\.such:Thing'.*ModuleNotFoundError"),
        ({"type": "lm.tasks:Task"}, r"expected a frozen dataclass that derives from .*Evaluator"),
    ],
)
def test_a_section_that_makes_no_sense_is_taken(tmp_path, section, said):
    with pytest.raises(ConfigError, match=said):
        settings.check(config(tmp_path, {"x": section}), 8)


def test_two_evaluations_have_one_name(tmp_path):
    section = {"type": "rows", "files": "x"}
    changes = {"eval.data.heldout": "y"}
    with pytest.raises(ConfigError, match=r"another evaluation has this name"):
        settings.check(config(tmp_path, {"heldout": section}, **changes), 8)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (ZeroDivisionError("division by zero"), r"the evaluation raised ZeroDivisionError"),
        ({"repeats": 1.0}, r"the evaluation returned dict, expected a Result"),
        (Result({"repeats": 0.5}), None),
    ],
)
def test_a_fault_of_a_user_s_evaluator_is_not_named(tmp_path, found, said, monkeypatch):
    def prepare(self, tools):
        def evaluate(params, step):
            if isinstance(found, Exception):
                raise found
            return found

        return evaluate

    monkeypatch.setattr(own_repeats.Repeats, "prepare", prepare)
    c = config(tmp_path, {"mine": {"type": OWN, "prompts": ("a",)}}, steps=1)
    if said is None:
        assert loop.train(c, tmp_path / "run") == 0
        return
    with pytest.raises(ConfigError, match=rf"evals\.mine .*own_repeats\.py.: {said}"):
        loop.train(c, tmp_path / "run")
