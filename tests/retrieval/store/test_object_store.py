"""A memory on an object store: without a lock, every commit must detect concurrent ones.

The store here is a folder that Lance treats as an object store.
"""

import multiprocessing
import random
import re

import pytest

from retrieval import Memory, Passage, RetrievalError
from retrieval.store import store
from tests.retrieval.toy import encode, state


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"file-object-store://{tmp_path}/bucket/m"


@pytest.fixture
def far(place):
    made = Memory.create(place, encode)
    made.add([Passage(f"p{i}", f"town{i} lies in land{i}") for i in range(10)])
    return made


def test_every_call_does_what_it_does_in_a_folder(place, tmp_path):
    seen = []
    for path in (place, tmp_path / "m"):
        memory = Memory.create(path, encode)
        memory.add([Passage(f"p{i}", f"town{i} lies in land{i}") for i in range(10)])
        memory.edit("p3", "town3 moved", tags=("x",))
        memory.delete(["p4", "p5"])
        memory.undo()
        memory.reembed(lambda texts: -encode(texts))
        memory.delete(["p1"])
        memory = Memory.open(path, lambda texts: -encode(texts))
        found = memory.search(["town3 moved", "land7"], 4)
        assert memory.verify() == [] and memory.stats()["passages"] == 9
        log = [(commit.action, commit.ids) for commit in memory.log()]
        seen.append(
            (
                state(memory),
                found,
                log,
                memory.diff(2, 3),
                memory.as_of(3).get("p3"),
                [c.action for c, _ in memory.history("p4")],
            )
        )
    assert seen[0] == seen[1]
    with pytest.raises(RetrievalError, match="already holds a memory"):
        Memory.create(place, encode)
    with pytest.raises(RetrievalError, match="does not exist"):
        Memory.open(f"{place}-else")
    assert any((tmp_path / "cache").rglob("manifest.json")), "the index is saved in the cache"


CHANGES = {
    "add": lambda memory: memory.add([Passage("new", "new")]),
    "edit": lambda memory: memory.edit("p1", "edited"),
    "delete": lambda memory: memory.delete(["p1"]),
    "undo": lambda memory: memory.undo(),
    "reembed": lambda memory: memory.reembed(lambda texts: -encode(texts)),
}
MEANWHILE = {
    "add": lambda memory: memory.add([Passage("other", "other")]),
    "edit": lambda memory: memory.edit("p2", "edited meanwhile"),
    "delete": lambda memory: memory.delete(["p2"]),
    "undo": lambda memory: memory.undo(),
}


def interrupt(monkeypatch, other):
    """Run `other`, which commits, between the preparation and the end of the next commit."""
    exclusive, done = store.exclusive, []

    def interrupted(*args):
        if not done:
            done.append(other)
            other()
        exclusive(*args)

    monkeypatch.setattr(store, "exclusive", interrupted)


@pytest.mark.parametrize("action", CHANGES)
@pytest.mark.parametrize("other", MEANWHILE)
def test_what_another_writer_commits_in_between_is_neither_lost_nor_undone(
    far, monkeypatch, action, other
):
    far.edit("p9", "the older change")
    first = state(far)
    far.edit("p9", "the change that undo takes back")
    interrupt(monkeypatch, lambda: MEANWHILE[other](Memory.open(far.path, encode)))
    before = state(far)
    CHANGES[action](far)
    assert len(far.log()) == 6, "one commit each"
    expected = {
        "add": lambda now: now | {"new": "new"},
        "edit": lambda now: now | {"p1": "edited"},
        "reembed": lambda now: now,
        "delete": lambda now: {id: text for id, text in now.items() if id != "p1"},
        "undo": lambda now: {"undo": first | {"p9": "town9 lies in land9"}}.get(other, before),
    }[action]
    meanwhile = {
        "add": lambda now: now | {"other": "other"},
        "edit": lambda now: now | {"p2": "edited meanwhile"},
        "delete": lambda now: {id: text for id, text in now.items() if id != "p2"},
        "undo": lambda now: first,
    }[other](before)
    assert state(far) == expected(meanwhile), (
        "undo takes back the newest change, which is the other's"
    )
    assert len(far._store.ids()) == len(state(far)), "an id is there twice"
    if action in ("add", "edit", "delete"):
        far.undo()
        assert state(far) == meanwhile


@pytest.mark.parametrize("action", CHANGES)
def test_what_meets_a_change_of_the_encoder_is_refused_and_changes_nothing(
    far, monkeypatch, action
):
    far.edit("p9", "edited")
    other = lambda texts: -encode(texts)
    interrupt(monkeypatch, lambda: Memory.open(far.path, encode).reembed(other))
    before = state(far)
    with pytest.raises(RetrievalError, match="re-encoded since it was opened here"):
        CHANGES[action](far)
    now = Memory.open(far.path, other)
    assert (
        state(now) == before
        and now.log()[-1].action == "reembed"
        and now.search(["edited"], 1)[0][0].id == "p9"
    )


def test_two_writers_cannot_both_add_the_same_id(far, monkeypatch):
    interrupt(monkeypatch, lambda: Memory.open(far.path, encode).add([Passage("same", "theirs")]))
    with pytest.raises(RetrievalError, match="already in the memory: 'same'"):
        far.add([Passage("same", "mine")])
    assert far.get("same").text == "theirs" and len(far) == 11


ACTIONS = {
    "add": lambda memory, id, text: memory.add([Passage(text, text)], reason=text),
    "edit": lambda memory, id, text: memory.edit(id, text, reason=text),
    "delete": lambda memory, id, text: memory.delete([id], reason=text),
    "undo": lambda memory, id, text: memory.undo(reason=text),
}


def _change(path, name, acknowledged):
    """Add, edit, delete and undo while others do; a commit's reason is the text it writes."""
    memory, rng = Memory.open(path, encode), random.Random(name)
    for number in range(12):
        text = f"{name} {number}"
        try:
            commit = ACTIONS[rng.choice(["add", "edit", "add", "edit", "delete", "undo"])](
                memory, f"p{rng.randrange(10)}", text
            )
            acknowledged.append((commit.version, commit.action, text))
        except RetrievalError as error:
            assert re.search("not in|no change left|conflict", str(error)), error


def test_processes_that_write_at_once_lose_nothing_and_an_undo_takes_back_one_change(far):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        acknowledged = manager.list()
        writers = [
            context.Process(target=_change, args=(far.path, name, acknowledged))
            for name in ("left", "right", "up")
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(120)
            assert writer.exitcode == 0
        assert len(far) >= 0
        log = far.log()
        assert sorted(acknowledged) == [
            (commit.version, commit.action, commit.reason) for commit in log[2:]
        ]
    now = {f"p{i}": f"town{i} lies in land{i}" for i in range(10)}
    before = [{}]
    for commit in log[2:]:
        if commit.action == "undo":
            now = before.pop()
            continue
        before.append(now)
        now = {id: text for id, text in now.items() if id not in commit.ids}
        now |= {id: commit.reason for id in commit.ids if commit.action != "delete"}
    assert state(far) == now and len(far._store.ids()) == len(now)
    assert {hit.id: hit.text for hit in far.search(["left 3"], 99)[0]} == now
    assert {commit.action for commit in log} >= {"add", "edit", "undo"}
