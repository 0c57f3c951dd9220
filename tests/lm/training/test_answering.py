"""Answers during a run: scored at intervals, same questions each time, no effect on training."""

import json

import pytest

from lm import tasks
from lm.models.config import ConfigError
from lm.training import loop, settings
from tests.lm.training.test_instruction import config

ASKED = {
    "eval.generation.files": "hold_out",
    "eval.generation.every": 2,
    "eval.generation.max_new_tokens": 4,
}


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_answers_trains_otherwise_or_keeps_no_scores(tmp_path):
    quiet, asking = tmp_path / "quiet", tmp_path / "asking"
    changes = {"samples.prompts": (), "log.every": 1, "steps": 3}
    assert loop.train(config(tmp_path, **changes), quiet) == 0
    assert loop.train(config(tmp_path, **changes, **ASKED), asking) == 0
    losses = lambda folder: [(row["step"], row["loss"]) for row in rows(folder) if "loss" in row]
    assert losses(quiet) == losses(asking)
    found = [row for row in rows(asking) if "eval/generation/rouge_l" in row]
    assert [row["step"] for row in found] == [2, 3]
    names = ("exact_match", "f1", "rouge_l", "stop_rate")
    assert all(0 <= row[f"eval/generation/{name}"] <= 100 for row in found for name in names)
    samples = (asking / "samples.md").read_text()
    assert (
        "## step 3" in samples
        and "task 7" in samples
        and "task 1" not in samples
        and "wanted: aaa" in samples
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"eval.generation.files": "", "eval.generation.every": 2}, "names no questions"),
        (
            {"eval.generation.max_new_tokens": 0},
            r"max_new_tokens=0: expected a number of at least 1",
        ),
        (
            {"eval.data.heldout": "", "task.hold_out": ""},
            "needs data.files and the tasks of task.hold_out",
        ),
    ],
)
def test_a_contradiction_is_found_after_hours(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        settings.check(config(tmp_path, **ASKED | changes), 8)


def test_another_task_takes_questions_it_cannot_spell(tmp_path):
    changes = {
        "task": tasks.defaults("next_token"),
        "eval.data.heldout": "",
    }
    with pytest.raises(ConfigError, match="questions are rendered by a template"):
        settings.check(config(tmp_path, **ASKED | changes), 8)
