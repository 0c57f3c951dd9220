"""Forking a process while one of its indexes is being checked or trained does not deadlock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval import RetrievalError
from retrieval.index import scann_searcher

ROOT = Path(__file__).parents[3]
START = """
import os, signal, sys, threading, time
import numpy as np
from retrieval import ScannIndex
from retrieval.index.tuning import Tuning
from retrieval.index.rotation import product

signal.alarm(150)  # what waits forever ends
rng = np.random.default_rng(0)

def forked(call):
    child = os.fork()
    if not child:
        signal.alarm(100)
        os._exit(not call())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status
"""
INDEX = """
spread = 0.9 ** np.arange(128, dtype=np.float32)  # uneven enough for the index to rotate
vectors = rng.normal(size=(6000, 128)).astype(np.float32) * spread
names = [f"v{i}" for i in range(6000)]
index = ScannIndex.build(vectors[:3000], names[:3000], Tuning(kind="quantised"))
for wait in np.linspace(0, 0.5, 6):
    index.upsert(vectors[3000:], names[3000:])
    time.sleep(wait)
    forked(lambda: True)
    index.wait()
    index.delete(names[3000:])
assert [ids[0] for ids in index.search(vectors[:100], 5)[0]] == names[:100]
"""
BLAS = """
square, went_on, ended = rng.normal(size=(400, 400)), [], threading.Event()

def work():
    while not ended.is_set():
        product(square, square)
        went_on.append(True)

workers = [threading.Thread(target=work) for _ in range(3)]
[worker.start() for worker in workers]
expected = square @ square
for _ in range(5):
    forked(lambda: np.allclose(product(square, square), expected))
before = len(went_on)
time.sleep(1)
assert len(went_on) > before, "nobody waits for the fork any more"
ended.set()
[worker.join() for worker in workers]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("script", [BLAS, INDEX], ids=["blas", "index"])
def test_a_process_can_be_forked_while_threads_work(script):
    if script is INDEX:
        try:
            scann_searcher.package()
        except RetrievalError as error:
            pytest.skip(str(error))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    done = subprocess.run(
        [sys.executable, "-c", START + script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
