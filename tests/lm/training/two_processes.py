"""A run of test_loop.py by two processes: python -m tests.lm.training.two_processes FOLDER

Ctrl-C reaches only the second process, during the fifth step; then two more processes resume the
run. Processes are forked, so that imports run once. Prints the exit codes of each pair.
"""

import os
import pathlib
import signal
import socket
import sys
import time

from lm.distributed import mesh
from lm.training import loop, trackers
from tests.lm.training import runs

EVAL = {"eval.every": 6}


def pair(folder: pathlib.Path, interrupted: bool) -> list[int]:
    """Exit codes of two processes that train as `test_loop.stopped` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {
            "JAX_NUM_PROCESSES": "2",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}",
        }
    children: list[int] = []
    for rank in (1, 0):
        children.insert(0, os.fork())
        if children[0] == 0:
            os.environ["JAX_PROCESS_ID"] = str(rank)
            if interrupted and rank == 0:
                trackers.Trackers.write = interrupting(trackers.Trackers.write, children[1])
            mesh.initialize_distributed()
            c = runs.config(folder, **EVAL, compilation_cache=str(folder / "compiled"))
            c.eval.data.heldout = runs.text(folder, "held.txt")
            code = loop.train(c, folder / "two")
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def interrupting(write, other: int):
    """Trackers.write that sends SIGINT to the process `other` at step 5, then slows steps.

    The delay lets the signal take effect within a few steps.
    """

    def slow(self, row):
        write(self, row)
        if row["step"] == 5:
            os.kill(other, signal.SIGINT)
        time.sleep(0.4 * (row["step"] >= 5))

    return slow


if __name__ == "__main__":
    print(pair(pathlib.Path(sys.argv[1]), True), pair(pathlib.Path(sys.argv[1]), False), flush=True)
