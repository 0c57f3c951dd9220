"""Runs of policies and preference pairs that are killed in any phase end as undisturbed ones do."""

import functools
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import monitoring

from lm.training import checkpoints, loop, trackers
from lm.weights.runs import weights as run_weights
from tests.lm.tasks import killed

ROOT = pathlib.Path(__file__).parents[3]
COMPILED = "/jax/core/compile/backend_compile_duration"
TIMES = {"tokens_per_second", "mfu", "seconds"}
ANY = "updating", "evaluating", "saving", "digesting"
PHASES = {"grpo": ("decoding", "drawing", "rewarding", "comparing", *ANY), "dpo": ANY}
QUICK = [("grpo", "llama", phase) for phase in ("decoding", "rewarding", "saving")]
CASES = [
    (task, family, phase)
    for task, phases in PHASES.items()
    for family in ("llama", "t5", "mamba")
    for phase in phases
]


def rows(workdir):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in trackers.read(workdir)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Function of task and family: folder of an undisturbed run, and steps at which it compiled."""

    @functools.cache
    def run(task, family):
        folder, steps, at = tmp_path_factory.mktemp(f"{task}-{family}"), [], [0]
        record = loop._Loop._record

        def see(event, seconds, **_):
            if event == COMPILED:
                steps.append(at[0])

        def recorded(self, step, metrics):
            at[0] = step
            return record(self, step, metrics)

        monitoring.register_event_duration_secs_listener(see)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Loop, "_record", recorded)
            assert loop.train(killed.config(folder, task, family), folder / "whole") == 0
        monitoring.clear_event_listeners()
        return folder, steps

    return run


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_a_killed_run_ends_elsewhere_than_an_undisturbed_one(whole, case):
    task, family, phase = case
    folder, compiled = whole(task, family)
    assert max(compiled) <= 3, f"compiled again after steps {compiled}"  # evaluated after step 3
    command = [sys.executable, "-m", "tests.lm.tasks.killed", str(folder), *case]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr
    assert 0 < max(checkpoints.steps(folder / phase)) < killed.STEPS
    assert loop.train(killed.config(folder, task, family), folder / phase) == 0
    assert rows(folder / phase) == rows(folder / "whole")
    (_, a, _), (_, b, _) = (run_weights.load_params(folder / n) for n in (phase, "whole"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
