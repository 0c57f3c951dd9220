"""A process that is forked while other threads work on an index: neither it nor the new one waits forever, or ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval import RetrievalError, scann_searcher

ROOT = Path(__file__).parents[2]
START = """
import os, signal, sys, threading, time
import numpy as np
from retrieval import RetrievalError, ScannIndex
from retrieval.locks import ReadersWriter
from retrieval.tuning import Tuning

signal.alarm(150)  # what waits forever ends

def forked(*calls):
    child = os.fork()
    if not child:
        signal.alarm(100)
        for call in calls:
            call()
        sys.exit(0)  # as any program ends, with everything taken down
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, (status, calls)
"""
INDEX = """
rng = np.random.default_rng(0)
vectors = rng.normal(size=(6000, 128)).astype(np.float32) * 0.9 ** np.arange(128, dtype=np.float32)  # worth a turn
names = [f"v{i}" for i in range(6000)]
index = ScannIndex.build(vectors[:3000], names[:3000], Tuning(kind="quantised"))
assert hasattr(index._trained.searcher, "_turn")
mine = lambda queries: [ids[0] for ids in index.search(vectors[queries], 5)[0]]
one = lambda: mine(slice(7, 8)) == ["v7"] or sys.exit(3)
many = lambda: mine(slice(100)) == names[:100] or sys.exit(4)
put = lambda: index.upsert(-vectors[:200], [f"new{i}" for i in range(200)])
more = lambda: (index.upsert(vectors[3000:], names[3000:]), index.wait(), index.health()["trained_on"] >= 6000 or sys.exit(5))
forked(one, many, put, more, many)
for wait in np.linspace(0, 0.5, 6):
    index.upsert(vectors[3000:], names[3000:])
    time.sleep(wait)
    forked(lambda: os._exit(0))  # this process goes on, whatever its threads do
    index.wait()
    index.delete(names[3000:])
one(), many()
"""
BLAS = """
from retrieval.turning import product

rng = np.random.default_rng(0)
square, went_on, ended = rng.normal(size=(400, 400)), [], threading.Event()

def work():
    while not ended.is_set():
        product(square, square)
        went_on.append(True)

workers = [threading.Thread(target=work) for _ in range(3)]
[worker.start() for worker in workers]
expected = square @ square
for _ in range(5):
    forked(lambda: np.allclose(product(square, square), expected) or sys.exit(3))
before = len(went_on)
time.sleep(1)
assert len(went_on) > before, "nobody waits for the fork any more"
ended.set()
[worker.join() for worker in workers]
"""
LOCK = """
lock, go_on = ReadersWriter(), threading.Event()

def hold(how):
    with how():
        held.set()
        go_on.wait()

def refused():
    for how in (lock.read, lock.write):
        try:
            with how():
                sys.exit(3)
        except RetrievalError as error:
            "when the process was forked: open or build it again" in str(error) or sys.exit(4)

def free():
    with lock.write():
        pass
    with lock.read():
        pass

for how, expected in ((lock.read, free), (lock.write, refused)):
    held = threading.Event()
    go_on.clear()
    holder = threading.Thread(target=hold, args=[how])
    holder.start()
    held.wait()
    forked(expected)
    go_on.set()
    holder.join()
    free()
    forked(free)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("script", [LOCK, BLAS, INDEX], ids=["lock", "blas", "index"])
def test_a_process_can_be_forked_while_threads_work(script):
    if script is INDEX:
        try:
            scann_searcher.package()
        except RetrievalError as error:
            pytest.skip(str(error))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([sys.executable, "-c", START + script], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
