"""Run one command on every worker, with prefixed output; a failure of one stops all."""

import contextlib
import dataclasses
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from launch.gcloud import end_group

FIRST_ERROR = re.compile(
    r"^\s*([A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b|(\w+: "
    r")?(fatal|error|ERROR)\b)|Segmentation fault|Check failed"
)


@dataclasses.dataclass
class Worker:
    """Process of a worker. first_error: first line that looks like an error. last: last line."""

    number: int
    process: subprocess.Popen
    reader: threading.Thread | None = None
    first_error: str = ""
    last: str = ""
    ended: int | None = None
    stopped: bool = False


def run_on_workers(
    commands: Sequence[Sequence[str]],
    watch: Callable[[], None],
    *,
    secrets: Sequence[str] = (),
    settle: float = 5.0,
    tick: float = 0.2,
) -> list[Worker]:
    """Run commands[i] as worker i until all have ended; return the failed ones in order of failure.

    After a failure the others have settle seconds to print their own errors, and are then stopped.
    watch: called every tick; it may raise to end the run. No process is left running.
    secrets: values that are masked in the output.
    """
    workers: list[Worker] = []
    failed: list[Worker] = []
    lock = threading.Lock()
    try:
        for number, command in enumerate(commands):
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            worker = Worker(number, process)
            workers.append(worker)
            worker.reader = threading.Thread(
                target=_read, args=(worker, len(commands), secrets, lock), daemon=True
            )
            worker.reader.start()
        deadline = float("inf")
        while any(worker.ended is None for worker in workers):
            for worker in workers:
                if worker.ended is None and worker.process.poll() is not None:
                    worker.ended = worker.process.returncode
                    if worker.ended:
                        failed.append(worker)
                        deadline = min(deadline, time.monotonic() + settle)
            if time.monotonic() > deadline:
                for worker in workers:
                    if worker.ended is None:
                        end_group(worker.process)
                        worker.ended, worker.stopped = worker.process.returncode, True
            watch()
            time.sleep(tick)
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                end_group(worker.process)
            if worker.reader is not None:
                worker.reader.join(timeout=2.0)
    return failed


def report(failed: Sequence[Worker], total: int) -> None:
    """Print the first error of every failed worker, in order of failure: the first is the cause."""
    for worker in failed:
        said = worker.first_error or worker.last or "nothing"
        print(
            f"error: worker {worker.number} of {total} ended with {worker.ended}; its first "
            f"error: {said}",
            file=sys.stderr,
        )


def _read(worker: Worker, total: int, secrets: Sequence[str], lock: threading.Lock) -> None:
    assert worker.process.stdout is not None  # opened as a pipe
    width = len(str(total - 1))
    for raw in worker.process.stdout:
        line = raw.decode(errors="replace").rstrip("\r\n")
        for secret in secrets:
            line = line.replace(secret, "***")
        if line.strip():
            worker.last = line.strip()
            if not worker.first_error and FIRST_ERROR.search(line):
                worker.first_error = line.strip()
        with (
            lock,
            contextlib.suppress(OSError),
        ):  # stdout may be closed; the worker's output must still be read
            print(f"[{worker.number:>{width}}] {line}", flush=True)
