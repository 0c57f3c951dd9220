"""Killed writers, concurrent readers: a call happened or did not; search matches the store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from retrieval import Memory, RetrievalError
from tests.retrieval.toy import encode, state

ROOT = Path(__file__).parents[3]

WRITER = """
import json, random, sys
from retrieval import Memory, Passage, memory as memory_module
from retrieval.store import upkeep
from tests.retrieval.store.test_durability import ENCODERS, opened
from tests.retrieval.toy import state
upkeep.UPKEEP, upkeep.SCALAR_INDEX_FROM, memory_module.SAVE_AFTER = ((3, 8), (6, 1000)), 20, 0
memory = opened(sys.argv[1])
memory.search(["x"])
rng = random.Random(int(sys.argv[2]))
print("ready", flush=True)
for number in range(10**6):
    ids = sorted(state(memory))
    new = [f"s{sys.argv[2]}-{number}-{i}" for i in range(rng.randint(1, 3))]
    actions = ["add", "edit", "delete", "undo", "retrain", "snapshot", "reembed"]
    action = rng.choice(actions if len(ids) > 3 else ["add"])
    some = rng.sample(ids, min(len(ids), 2))
    can_undo = lambda: memory._store.history.state(memory.version).undo_to
    call = {
        "add": lambda: memory.add([Passage(id, f"text of {id}") for id in new]),
        "edit": lambda: memory.edit(some[0], f"edited in {new[0]}"),
        "delete": lambda: memory.delete(some),
        "undo": lambda: memory.undo() if can_undo() else None,
        "retrain": lambda: memory._handle.live_index.rebuild(),
        "snapshot": lambda: memory._handle.live_index.save(),
        "reembed": lambda: memory.reembed(ENCODERS[memory._encoder.encode is ENCODERS[0]]),
    }[action]
    print(json.dumps([action, new, some]), flush=True)
    call()
    print("done", flush=True)
"""


ENCODERS = (encode, lambda texts: -encode(texts))


def opened(path):
    """Open the memory with its current encoder."""
    for encoder in ENCODERS:
        try:
            return Memory.open(path, encoder)
        except RetrievalError as error:
            refused = error
    raise refused


def applied(action, new, some, now, undo_stack):
    """Return (state, undo stack, commits made) after a call."""
    if action in ("retrain", "snapshot") or (action == "undo" and not undo_stack):
        return now, undo_stack, 0
    if action == "reembed":
        return now, [], 1
    if action == "undo":
        return undo_stack[-1], undo_stack[:-1], 1
    after = {
        "add": lambda: now | {id: f"text of {id}" for id in new},
        "edit": lambda: now | {some[0]: f"edited in {new[0]}"},
        "delete": lambda: {id: text for id, text in now.items() if id not in some},
    }[action]()
    return after, [*undo_stack, now], 1


def check_search_is_exact(memory):
    vectors, ids = memory._store.vectors()
    queries = ["text of s1", "town3 lies", "edited in"]
    encoded = memory._encoder.encode(queries)
    exact = encoded / np.linalg.norm(encoded, axis=1, keepdims=True) @ vectors.T
    for row, hits in zip(exact, memory.search(queries, 10), strict=True):
        assert [hit.score for hit in hits] == pytest.approx(np.sort(row)[::-1][:10], abs=1e-3)
        assert all(hit.score == pytest.approx(row[ids.index(hit.id)], abs=1e-3) for hit in hits)


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_before_or_after_and_what_it_acknowledged_is_there(
    memory, rng, kills
):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    now, undo_stack, commits, calls = state(memory), [{}], len(memory.log()), 0
    start = lambda seed: subprocess.Popen(
        [sys.executable, "-c", WRITER, memory.path, str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    for kill in range(kills):
        writer = start(kill)
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.5))
        writer.send_signal(signal.SIGKILL)
        said = writer.communicate()[0].splitlines()
        calls += len(said) // 2
        reopened = opened(memory.path)
        for line, answer in zip(said[::2], [*said[1::2], "killed"], strict=False):
            after, stack, made = applied(*json.loads(line), now, undo_stack)
            if answer == "done" or len(reopened.log()) == commits + made:
                now, undo_stack, commits = after, stack, commits + made
        assert (state(reopened), len(reopened.log())) == (now, commits), said[-3:]
        assert reopened.verify() == []
        check_search_is_exact(reopened)
    assert calls > kills, "the writers did not get to work"


SNAPSHOT = """
import os, signal, sys
from pathlib import Path
from retrieval.index.vectors import read_manifest, save_index

# audit events, raised before the action that they name
STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
folder, seen, killed = Path(sys.argv[1]), [], True

def killed_before(step):
    def look(event, _):
        nonlocal step
        step -= event in STEPS
        if not step and event in STEPS:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)

def save(version):
    names = ("codes", "rows")
    write = lambda fresh: [(fresh / name).write_text(f"{name} {version}") for name in names]
    save_index(folder, write, [version] * 3, kind="test", version=version)

def found():
    place, manifest, ids = read_manifest(folder, "test")  # compares every file with its checksum
    assert ids == [manifest["version"]] * 3 and (place / "rows").read_text() == f"rows {ids[0]}"
    return ids[0]

while killed:
    save("before")
    child = os.fork()
    if not child:
        killed_before(len(seen) + 1)
        save("after")
        os._exit(0)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    seen.append(found())
    save("next")
    assert found() == "next"
    assert len(list(folder.iterdir())) == 1, "the files of a killed process are not removed"
print(*seen)
"""


def test_a_snapshot_killed_before_any_of_its_steps_leaves_the_one_before_or_the_new_one_whole(
    tmp_path,
):
    command, environment = (
        [sys.executable, "-c", SNAPSHOT, str(tmp_path)],
        {**os.environ, "PYTHONPATH": str(ROOT)},
    )
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split()
    renamed = seen.index("after")
    assert (
        seen == ["before"] * renamed + ["after"] * (len(seen) - renamed)
        and min(renamed, len(seen) - renamed) > 4
    ), seen
