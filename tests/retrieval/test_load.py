"""Concurrent readers and writers: no wrong id or text, and no deleted passage comes back."""

import multiprocessing
import random
import threading
import time

import pytest

from retrieval import Memory, Passage
from tests.retrieval.toy import encode, state


def write(memory, name, seconds, gone, failures):
    """Add, edit and delete passages `name`0, `name`1, ...

    An id is added to `gone` once its delete has returned.
    """
    rng, number, alive, deadline = random.Random(name), 0, [], time.monotonic() + seconds
    try:
        while time.monotonic() < deadline or not any(
            id.startswith(name) for id in list(gone.keys())
        ):  # however slow the machine
            new = [f"{name}{number + i}" for i in range(rng.randint(1, 3))]
            number += len(new)
            memory.add([Passage(id, f"word{rng.randrange(50)} of {id} first") for id in new])
            alive += new
            id = rng.choice(alive)
            memory.edit(id, f"word{rng.randrange(50)} of {id} edited")
            if len(alive) > 20:
                old = rng.sample(alive, 5)
                alive = [id for id in alive if id not in old]
                memory.delete(old)
                gone.update(dict.fromkeys(old, True))
    except BaseException as error:
        failures.append(f"{name}: {error!r}")
        raise


def write_elsewhere(path, seconds, gone, failures):
    write(Memory.open(path, encode), "far", seconds, gone, failures)


def read(memory, seed, deadline, gone, failures, counts):
    rng = random.Random(seed)
    try:
        while time.monotonic() < deadline:
            before = set(gone.keys())
            for hits in memory.search([f"word{rng.randrange(50)} of", "town3 lies in land3"], 20):
                ids = [hit.id for hit in hits]
                wrong = [
                    hit
                    for hit in hits
                    if f"of {hit.id} " not in hit.text and not hit.text.startswith("town")
                ]
                if wrong or before & set(ids) or len(ids) != len(set(ids)) or not ids:
                    failures.append(f"reader {seed}: {wrong} {sorted(before & set(ids))} {ids}")
                    return
            counts[seed] += 1
    except BaseException as error:
        failures.append(f"reader {seed}: {error!r}")
        raise


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_eight_readers_two_writers_and_another_process_see_no_wrong_and_no_deleted_passage(
    memory, seconds, monkeypatch
):
    monkeypatch.setattr("retrieval.store.upkeep.SCALAR_INDEX_FROM", 50)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        gone, failures, counts = manager.dict(), manager.list(), [0] * 8
        other = context.Process(target=write_elsewhere, args=(memory.path, seconds, gone, failures))
        other.start()
        deadline = time.monotonic() + seconds + 2
        readers = [
            threading.Thread(target=read, args=(memory, seed, deadline, gone, failures, counts))
            for seed in range(8)
        ]
        writers = [
            threading.Thread(target=write, args=(memory, name, seconds, gone, failures))
            for name in ("left", "right")
        ]
        for thread in (*readers, *writers):
            thread.start()
        for thread in (*readers, *writers):
            thread.join()
        other.join(120)
        len(memory)  # sees what the other process wrote last
        assert list(failures) == [] and other.exitcode == 0
        deleted = gone.keys()
        assert min(counts) > 0 and {id.rstrip("0123456789") for id in deleted} == {
            "left",
            "right",
            "far",
        }
        assert not set(deleted) & set(state(memory))
    assert memory.verify() == []
