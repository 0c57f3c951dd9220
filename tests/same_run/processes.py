"""Processes that run the jobs of both checkouts side by side, and their results."""

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.same_run.jobs import Job, asked

WORKER = pathlib.Path(__file__).with_name("worker.py")
# Eight CPU devices and little work for LLVM, as in tests/conftest.py. The values are repeated here
# so that a record stays comparable.
XLA_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
OTHERS_SETTINGS = ("JAX_", "XLA_", "PYTHON", "TF_", "HF_", "OPENBOOK_")
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": XLA_FLAGS,
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "PYTHONHASHSEED": "0",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
FOLDERS = ("logs", "results", "runs", "programs", "exports", "memory", "encoder", "data")
TAIL = 6  # lines of a log to show


class Side(NamedTuple):
    """A checkout and the folder of its results.

    made: the folder of the other checkout's results, read by jobs `of_other`.
    """

    checkout: pathlib.Path
    folder: pathlib.Path
    made: pathlib.Path | None = None

    def result(self, name: str) -> dict | None:
        """Read the result of a job; None before it has ended.

        It is {"values": ..., "seconds": ...} or {"failed": ..., "seconds": ...}.
        """
        file = self.folder / "results" / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def write(self, name: str, result: dict) -> None:
        file = self.folder / "results" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result))

    def tail(self, name: str) -> list[str]:
        log = self.folder / "logs" / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return [line for line in lines if line.strip()][-TAIL:]


class Batch(NamedTuple):
    """Jobs of one process, in order. after: a side whose batches must end first."""

    side: Side
    jobs: Sequence[Job]
    after: Side | None = None


def failure(why: str) -> dict:
    """Result of a job that was not done."""
    return {"failed": why, "seconds": 0.0}


def batches(side: Side, jobs: Sequence[Job], after: Side | None = None) -> list[Batch]:
    """Group jobs by process. after: the side, not yet run, whose files jobs `of_other` read."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if side.made or not job.of_other:
            found.setdefault(job.process, []).append(job)
    return [Batch(side, each, after if each[0].of_other else None) for each in found.values()]


def environment(side: Side, inherited: Mapping[str, str]) -> dict[str, str]:
    """Environment of a process, equal on both sides except for the checkout and the cache."""
    kept = {n: v for n, v in inherited.items() if not n.startswith(OTHERS_SETTINGS)}
    own = {
        "PYTHONPATH": str(side.checkout),
        "JAX_COMPILATION_CACHE_DIR": str(side.folder / "compiled"),
    }
    return kept | SETTINGS | own


class Processes:
    """Runner of batches, at most `most` at a time, in order.

    `step` starts processes and handles those that ended; `stop` kills all.
    """

    def __init__(self, waiting: Sequence[Batch], inputs: pathlib.Path, most: int):
        self.waiting, self.inputs, self.most = list(waiting), inputs, most
        self.running: list[tuple[Batch, subprocess.Popen]] = []
        self.started = 0

    def step(self) -> bool:
        """Start processes and handle ended ones. Return whether any batch is left."""
        for batch, process in [pair for pair in self.running if pair[1].poll() is not None]:
            self.running.remove((batch, process))
            self._ended(batch, process.returncode)
        for batch in [batch for batch in self.waiting if self._ready(batch)]:
            if len(self.running) < self.most:
                self.waiting.remove(batch)
                self.running.append((batch, self._start(batch)))
        return bool(self.running or self.waiting)

    def stop(self) -> None:
        for _, process in self.running:
            process.kill()
            process.wait()

    def _ready(self, batch: Batch) -> bool:
        unfinished = [*self.waiting, *(running for running, _ in self.running)]
        return not any(one.side == batch.after for one in unfinished)

    def _start(self, batch: Batch) -> subprocess.Popen:
        side, self.started = batch.side, self.started + 1
        for name in FOLDERS[:4]:
            (side.folder / name).mkdir(parents=True, exist_ok=True)
        spec = {
            "checkout": str(side.checkout),
            "folder": str(side.folder),
            "made": str(side.made),
            "jobs": [
                asked(job) | {"name": job.name, "of_other": job.of_other} for job in batch.jobs
            ],
        }
        file = side.folder / f"process-{self.started}.json"
        file.write_text(json.dumps(spec, indent=1))
        return subprocess.Popen(
            [sys.executable, "-P", WORKER, file],
            cwd=self.inputs,
            env=environment(side, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file.with_suffix(".log").open("w"),
        )

    def _ended(self, batch: Batch, code: int) -> None:
        """Handle the end of a process.

        If jobs are left, the first of them has failed; a new process runs the others.
        """
        left = [job for job in batch.jobs if batch.side.result(job.name) is None]
        if not left:
            return
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        batch.side.write(left[0].name, failure(f"its process ended with {how}"))
        if left[1:]:
            self.waiting.insert(0, batch._replace(jobs=left[1:]))
