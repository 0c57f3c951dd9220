"""Sources that see the state: what they carry, a kill, several tasks, and faults of a user's."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm import preview, tasks
from lm.models.config import ConfigError
from lm.training import checkpoints, loop, setup, trackers
from lm.weights.runs import paths
from lm.weights.runs import weights as run_weights
from tests.lm.training import own_bandit, runs

ROOT = pathlib.Path(__file__).parents[3]
BANDIT = "tests.lm.training.own_bandit:Bandit"
STEPS = 14


def config(folder, **changes):
    usual = {
        "steps": STEPS,
        "batch_size": 32,
        "checkpoint.every": 3,
        "task": tasks.defaults(BANDIT),
    }
    return runs.config(folder, **{"optimizer.learning_rate": 0.1, **usual, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bandit")
    assert loop.train(config(folder), folder / "whole") == 0
    return folder


def rows(folder):
    names = ("step", "loss", "gradient_norm", "reward", "tokens")
    return [{name: row[name] for name in names} for row in trackers.read(folder)]


def test_the_policy_does_not_learn_which_byte_is_rewarded(whole):
    rewards = [row["reward"] for row in rows(whole / "whole")]
    assert rewards[0] < 0.4 and np.mean(rewards[-4:]) > 0.8


def test_after_kill_9_a_source_repeats_or_loses_what_it_drew(whole):
    # Step 3 used the first half of a draw, so the checkpoint carries the second.
    saved = whole / "killed/checkpoints/3/commit_success.txt"
    environment = {**os.environ, own_bandit.KILL_AT: str(4 * 32), own_bandit.SAVED: str(saved)}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "tests.lm.training.own_bandit", str(whole)]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert re.search(r"; memory a device: \S+ \wB state and batch, \S+ \wB temp", ended.stdout)
    assert checkpoints.steps(whole / "killed") == [3]
    assert loop.train(config(whole), whole / "killed") == 0
    assert rows(whole / "killed") == rows(whole / "whole")
    (_, a, _), (_, b, _) = (run_weights.load_params(whole / name) for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def source_of(folder, **changes):
    """(source, state before the first step) of a run that is not trained."""
    c = config(folder, **changes)
    run = setup.prepare(c, paths.resolve(str(folder / "prepared")))
    others = {name: setup.packed(part, run) for name, part in run.parts.further.items()}
    made = lambda: setup.train_source(c, run, setup.training_data(c, run), others)
    return made, run.fresh_state(0)


def test_beside_another_task_a_source_is_not_restored(tmp_path):
    part = {"task": tasks.defaults(BANDIT), "files": runs.text(tmp_path), "batch_size": 8}
    changes = {"task": tasks.defaults("next_token"), "further_tasks": {"bandit": part}}
    made, state = source_of(tmp_path, **changes)
    first, second = made(), made()
    batches = [first.next(state)]
    position, carry = first.position(), first.carry()  # the second half of a draw
    assert set(carry) == {f"bandit/{name}" for name in ("tokens", "rewards", "none")}
    batches += [first.next(state), first.next(state)]
    second.restore(json.loads(json.dumps(position)), carry)
    again = [second.next(state), second.next(state)]
    jax.tree.map(np.testing.assert_array_equal, batches[1:], again)
    drawn = [np.asarray(batch["bandit"].tokens) for batch in batches]
    assert not np.array_equal(drawn[0], drawn[1])


def test_a_fault_of_a_source_is_not_named_with_its_file(tmp_path):
    made, state = source_of(tmp_path)
    source = made()
    source.next(state)
    for fault, words in {
        "next raises": "next raised KeyError: 'tokens'",
        "no batch": "next returned dict, expected Batch",
        "short": r"next: the field 'labels' of a batch has shape \[1, 2\], expected \[32, 2\]",
        "undeclared": "next: a row has the field 'prizes', which lm.batch.FIELDS does not",
        "lossy": "next: the field 'tokens' is declared as int32, which cannot hold values",
        "outside": "next: tokens hold .*, outside the vocabulary",
        "position": "position returned .*, which JSON does not hold as it is",
        "carry": "carry returned 'texts' of .*, expected names with arrays of numbers",
    }.items():
        source._source.fault = fault
        where = rf"source Draws \(tests/lm/training/own_bandit\.py\): {words}"
        method = getattr(source, fault if fault in ("position", "carry") else "next")
        with pytest.raises(ConfigError, match=where):
            method(state) if method.__name__ == "next" else method()


def test_the_preview_shows_the_rows_of_the_files_and_not_what_was_drawn(tmp_path, capsys):
    text = "import pathlib\nfrom tests.lm.training import test_source\n\n\ndef get_config():\n"
    text += f"    return test_source.config(pathlib.Path({str(tmp_path)!r}))\n"
    (tmp_path / "bandit.py").write_text(text)
    folder = f"--workdir={tmp_path / 'run'}"
    arguments = [f"--config={tmp_path / 'bandit.py'}", folder, "--json", "--rows=2"]
    assert preview.main(arguments) == 1, "the rows of the text have copies"
    row = json.loads(capsys.readouterr().out)["rows"][1]
    texts = pathlib.Path(runs.text(tmp_path)).read_text().replace(" ", "\N{MIDDLE DOT}")
    shown = "".join(token["text"] for token in row["tokens"][:-1])
    assert shown[:10] in texts and shown not in texts, "the last token is drawn"
    assert row["labels"][1] in (0.0, 1.0)
