"""Runs of test_open_book.py by two processes: python -m tests.retrieval.tasks.two_processes FOLDER

FOLDER/two-searched searches the memory at every step, FOLDER/two reads rows that were made before.
Prints the exit codes of both processes for each run. Processes are forked, so that imports run
once.
"""

import os
import pathlib
import socket
import sys

from lm.distributed import mesh
from lm.training import loop
from retrieval.tasks import searching

SEARCHES = "searches"  # file a process, a line a search: its questions


def run(folder: pathlib.Path, name: str, searched: bool) -> int:
    """Train; the name of the run's folder is `name`."""
    from tests.retrieval.tasks.test_open_book import config  # which imports this file

    own = {"retriever": "marginal", "search": searched}
    c = config(folder, folder, own=own, steps=3, **{"eval.data": {}})
    c.compilation_cache = str(folder / "compiled")
    c.optimizer.eps = 1e-4  # by Adam's 1e-8, the rounding of a gradient near 0 moves a weight
    return loop.train(c, folder / name)


def both(folder: pathlib.Path) -> None:
    """Train by two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {
            "JAX_NUM_PROCESSES": "2",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}",
        }
    children: list[int] = []
    for rank in (0, 1):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ["JAX_PROCESS_ID"] = str(rank)
            searching.Trained.queries = counted(folder / f"{SEARCHES}{rank}")
            mesh.initialize_distributed()
            codes = run(folder, "two-searched", True), run(folder, "two", False)
            os._exit(max(codes))
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)


def counted(file: pathlib.Path):
    """Trained.queries that writes the number of its questions."""
    queries = searching.Trained.queries

    def writing(self, texts):
        with file.open("a") as log:
            log.write(f"{len(texts)}\n")
        return queries(self, texts)

    return writing


if __name__ == "__main__":
    import tests.retrieval.tasks.test_open_book  # noqa: F401 (once, before the processes fork)

    both(pathlib.Path(sys.argv[1]))
