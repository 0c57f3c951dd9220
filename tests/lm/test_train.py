"""python -m lm.train: a killed run resumes to the same end; bad input gives one clear line."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lm import train
from lm.training import checkpoints, trackers
from lm.weights.runs import weights as run_weights
from tests.lm.training import runs

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 60


def command(folder, workdir):
    settings = {
        "steps": STEPS,
        "batch_size": 4,
        "length": 16,
        "data.files": folder / "x.txt",
        "eval.data.heldout": folder / "held.txt",
        "eval.every": 8,
        "model.d_model": 16,
        "model.n_layers": 1,
        "model.d_ff": 32,
        "model.n_heads": 2,
        "model.n_kv_heads": 2,
        "model.dropout": 0.1,
        "optimizer.warmup": 2,
        "accumulate": 2,
        "log.every": 1,
        "checkpoint.every": 5,
        "samples.prompts": "()",
        "log.tensorboard": False,  # its import of torch takes seconds
        "mesh.data": 1,
        "mesh.fsdp": 2,
        "compilation_cache": folder / "compiled",
        "data.cache": folder / "cache",
    }
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    return [
        sys.executable,
        "-m",
        "lm.train",
        f"--config={ROOT}/configs/tiny.py",
        f"--workdir={workdir}",
        *fields,
    ]


def start(folder, workdir):
    env = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        command(folder, workdir),
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def last_step(workdir):
    rows = trackers.read(workdir)
    return rows[-1]["step"] if rows else 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    runs.text(folder)
    runs.text(folder, "held.txt")
    return folder


def test_a_killed_run_ends_elsewhere_than_an_undisturbed_one(folder):
    finish(start(folder, folder / "whole"))
    seed = random.randrange(10**6)
    kills = sorted(random.Random(seed).sample(range(6, STEPS - 12), 2))
    resumed_at = []
    for kill in kills:
        process = start(folder, folder / "killed")
        while process.poll() is None and last_step(folder / "killed") < kill:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"seed {seed}: {output}"
        resumed_at.append(max(checkpoints.steps(folder / "killed"), default=0))
    said = finish(start(folder, folder / "killed"))
    assert not resumed_at[-1] or f"after step {resumed_at[-1]}" in said

    ours, theirs = (trackers.read(folder / name) for name in ("killed", "whole"))
    shown = lambda rows: [
        {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second", "mfu")}
        for row in rows
    ]
    assert shown(ours) == shown(theirs), f"seed {seed}: killed at {kills}, resumed at {resumed_at}"
    assert [row["step"] for row in ours if "loss" in row] == list(range(1, STEPS + 1))
    (_, a, _), (_, b, _) = (run_weights.load_params(folder / name) for name in ("killed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--config.steps=0"], "steps=0: expected a number of at least 1"),
        (["--config.mesh.fsdp=3"], "does not fit"),
        (["--config.data.files=nowhere.txt"], "no file matches 'nowhere.txt'"),
        (["--config.tokenizer=nowhere"], "nowhere"),
        (["--config.init_from=nowhere/else"], "nowhere/else"),
    ],
)
def test_bad_input_ends_in_a_stack_trace(tmp_path, capsys, args, said):
    arguments = [
        f"--config={ROOT}/configs/tiny.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.files={runs.text(tmp_path)}",
        *args,
    ]
    assert (
        train.main(
            [
                a
                for a in arguments
                if not (args[0].startswith("--config.data") and a.endswith("x.txt"))
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_help_says_nothing(capsys):
    assert train.main(["--help"]) == 0
    assert "--workdir" in capsys.readouterr().out
