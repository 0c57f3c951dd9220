"""A memory on an object store: no lock, so every commit must notice what came in between. The store here is a folder that Lance
treats as one."""

import multiprocessing

import pytest

from retrieval import Memory, Passage, RetrievalError, store
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
        seen.append((state(memory), found, log, memory.diff(2, 3), memory.as_of(3).get("p3"), [c.action for c, _ in memory.history("p4")]))
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
}


@pytest.mark.parametrize("action", CHANGES)
@pytest.mark.parametrize("other", MEANWHILE)
def test_what_another_writer_commits_in_between_is_neither_lost_nor_undone(far, monkeypatch, action, other):
    far.edit("p9", "the change that undo takes back")
    exclusive, done = store.exclusive, []

    def interrupted(*args):
        if not done:
            done.append(other)
            MEANWHILE[other](Memory.open(far.path, encode))
        exclusive(*args)

    monkeypatch.setattr(store, "exclusive", interrupted)
    before = state(far)
    CHANGES[action](far)
    expected = {
        "add": lambda now: now | {"new": "new"}, "edit": lambda now: now | {"p1": "edited"}, "reembed": lambda now: now,
        "delete": lambda now: {id: text for id, text in now.items() if id != "p1"}, "undo": lambda now: before,
    }[action]  # fmt: skip
    meanwhile = {
        "add": lambda now: now | {"other": "other"}, "edit": lambda now: now | {"p2": "edited meanwhile"},
        "delete": lambda now: {id: text for id, text in now.items() if id != "p2"},
    }[other](before)  # fmt: skip
    assert state(far) == expected(meanwhile), "undo takes back the newest change, which is the other's"
    assert len(far._store.ids()) == len(state(far)), "an id is there twice"
    if action in ("add", "edit", "delete"):
        far.undo()
        assert state(far) == meanwhile


def test_two_writers_cannot_both_add_the_same_id(far, monkeypatch):
    exclusive, done = store.exclusive, []

    def interrupted(*args):
        if not done:
            done.append("one")
            Memory.open(far.path, encode).add([Passage("same", "theirs")])
        exclusive(*args)

    monkeypatch.setattr(store, "exclusive", interrupted)
    with pytest.raises(RetrievalError, match="already in the memory: 'same'"):
        far.add([Passage("same", "mine")])
    assert far.get("same").text == "theirs" and len(far) == 11


def _write(path, name):
    memory = Memory.open(path, encode)
    for number in range(6):
        memory.add([Passage(f"{name}{number}", f"{name} {number}")])
        memory.edit(f"{name}{number}", f"{name} {number} edited")
    memory.delete([f"{name}0"])


def test_processes_that_write_at_once_lose_nothing(far):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(far.path, name)) for name in ("left", "right")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    expected = {f"{name}{number}": f"{name} {number} edited" for name in ("left", "right") for number in range(1, 6)}
    assert {id: text for id, text in state(far).items() if id[0] != "p"} == {}, "not yet seen"
    assert len(far) == 20 and {id: text for id, text in state(far).items() if id[0] != "p"} == expected
    assert far.search(["left 3 edited"], 1)[0][0].id == "left3" and len(far.log()) == 2 + 2 * 13
