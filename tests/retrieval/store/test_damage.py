"""Bit flips, full and read-only disks: damage is named and nothing is lost."""

import logging
import os
import shutil
import subprocess

import lance
import pytest

from retrieval import Memory, Passage, RetrievalError
from retrieval.store.checksums import manifest_of
from retrieval.verification import problems
from tests.retrieval.toy import encode, state

NORMAL_AND_SLOW = [40, pytest.param(500, marks=pytest.mark.slow)]


@pytest.fixture
def lived(tmp_path, monkeypatch):
    """A memory with every kind of file.

    Adds, edits, deletes, undos, a compaction, an id index and a saved search index.
    """
    monkeypatch.setattr("retrieval.store.upkeep.UPKEEP", ((4, 5), (4, 10**6)))
    monkeypatch.setattr("retrieval.store.upkeep.SCALAR_INDEX_FROM", 10)
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage(f"p{i}", f"town{i} lies in land{i}", tags=("town",)) for i in range(60)])
    for i in range(6):
        memory.edit(f"p{i}", f"edited {i}")
    memory.delete(["p7", "p8"])
    memory.undo()
    memory.search(["town"])
    return memory


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


@pytest.mark.parametrize("flips", NORMAL_AND_SLOW)
def test_every_flipped_bit_in_the_store_s_files_is_named_by_verify(lived, rng, flips):
    assert lived.verify() == []
    own = [*files(lived.path / "passages.lance"), lived.path / "checksums"]
    assert {path.parent.name for path in own} >= {
        "data",
        "_versions",
        "_transactions",
        "_deletions",
    }
    assert any("_indices" in path.parts for path in own), "the id index under test was not made"
    for number in range(flips):
        path = own[number % len(own)] if number < len(own) else own[rng.integers(len(own))]
        good = path.read_bytes()
        flip(path, rng)
        found = problems(lived.path)
        assert any(str(path) in problem for problem in found), (path, found)
        path.write_bytes(good)
    assert lived.verify() == []


@pytest.mark.parametrize("flips", NORMAL_AND_SLOW)
def test_every_flipped_bit_in_the_saved_index_is_found_and_the_index_rebuilt(
    lived, rng, flips, caplog
):
    queries = ["town1", "land2 lies"]
    expected, index = lived.search(queries, 5), lived.path / "index"
    copy = shutil.copytree(index, lived.path.parent / "copy")
    names = [path.relative_to(index) for path in files(index)]
    for number in range(flips):
        flip(index / names[number % len(names)], rng)
        assert number or any("rebuilt" in problem for problem in lived.verify())
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert Memory.open(lived.path, encode).search(queries, 5) == expected
        assert "rebuilt from the store" in caplog.text
        shutil.rmtree(index)
        shutil.copytree(copy, index)


def test_what_was_changed_behind_the_checksums_is_found_by_the_rows_own(lived):
    store = lived._store
    store._dataset.update({"text": "'forged'"}, where="id = 'p9'")
    store._dataset.update(
        {
            "vector": "arrow_cast(make_array("
            + ", ".join(["1.0"] * 32)
            + "), 'FixedSizeList(32, Float16)')"
        },
        where="id = 'p10'",
    )
    lance.write_dataset(
        store.columns(lived._store._dataset.schema.names).slice(0, 1),
        store._dataset.uri,
        mode="append",
    )
    Memory.open(lived.path, encode).add([Passage("new", "which notes the forged files")])
    twice = store.ids()[0]
    assert [problem.split(" in ")[0] for problem in lived.verify()] == [
        f"passage {id!r}" for id in (twice, "p10", "p9")
    ]
    with pytest.raises(RetrievalError, match=r"vectors of 'p10'.*damaged"):
        Memory.open(lived.path, encode)._store.vectors()


def test_a_writer_killed_before_it_noted_its_files_is_made_up_for_by_the_next_change(
    lived, monkeypatch
):
    with monkeypatch.context() as killed:
        killed.setattr("retrieval.store.checksums.note", lambda *args: None)
        lived.edit("p1", "the lost line")
    assert lived.verify() == []
    lived.edit("p2", "the next change")
    noted = (lived.path / "checksums").read_text()
    assert [
        path.name for path in files(lived.path / "passages.lance") if path.name not in noted
    ] == ["latest_version_hint.json"]
    (lived.path / "checksums").unlink()
    assert "checksums is missing" in lived.verify()[0]
    lived.edit("p2", "once more")
    assert lived.verify() == [] and "p60" not in state(lived)


@pytest.fixture
def disk(tmp_path):
    """A folder on a 4 MB disk, and a function that remounts it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = lambda options: (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
        ).returncode
    )
    if os.geteuid() != 0 or mount("size=4m"):
        pytest.skip("mounting a small disk needs root")
    yield (
        folder,
        lambda options: (
            mount(f"remount,size=4m,{options}")
            and pytest.fail("the disk could not be mounted anew")
        ),
    )
    subprocess.run(["umount", "-l", str(folder)], check=True)


CHANGES = {
    "add": lambda memory: memory.add([Passage(f"big{i}", f"{i} " * 5_000) for i in range(50)]),
    "edit": lambda memory: memory.edit("p1", "edited"),
    "delete": lambda memory: memory.delete(["p1"]),
    "undo": lambda memory: memory.undo(),
    "reembed": lambda memory: memory.reembed(lambda texts: -encode(texts)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_disk_loses_nothing_and_the_call_works_once_there_is_room(disk, change):
    folder, _ = disk
    memory = Memory.create(folder / "m", encode)
    memory.add([Passage(f"p{i}", f"town{i} lies in land{i}") for i in range(30)])
    before, queries = state(memory), ["town3"]
    hits = memory.search(queries, 3)
    with (
        pytest.raises(OSError, match="No space"),
        open(folder / "filler", "wb", buffering=0) as filler,
    ):
        while True:
            filler.write(bytes(1024))
    with pytest.raises(RetrievalError, match="could not be written: nothing was changed"):
        CHANGES[change](memory)
    for seen in (memory, Memory.open(folder / "m", encode)):
        assert state(seen) == before and seen.search(queries, 3) == hits and seen.version == 2
    (folder / "filler").unlink()
    CHANGES[change](memory)
    assert memory.version == 3 and memory.verify() == []
    assert Memory.open(folder / "m").log()[-1].action == change


def test_a_memory_on_a_read_only_disk_can_be_searched_and_says_why_it_cannot_be_changed(disk):
    folder, remount = disk
    memory = Memory.create(folder / "m", encode)
    memory.add([Passage(f"p{i}", f"town{i} lies in land{i}") for i in range(30)])
    remount("ro")
    for seen in (memory, Memory.open(folder / "m", encode)):
        assert seen.search(["town3 lies in land3"], 1)[0][0].id == "p3" and seen.verify() == []
        for change in CHANGES.values():
            with pytest.raises(RetrievalError, match="writable"):
                change(seen)
    remount("rw")
    memory.delete(["p3"])
    assert len(memory) == 29 and memory.verify() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [],
        lambda lines: lines[:3],
        lambda lines: lines[:4] + lines[5:],
        lambda lines: lines[1:],
    ],
    ids=["emptied", "cut", "one gone", "the first gone"],
)
def test_checksums_that_are_gone_are_missed(lived, damage):
    journal = lived.path / "checksums"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) > 7 and lived.verify() == []
    journal.write_text("".join(damage(lines)))
    assert any("lines of it are gone" in problem for problem in Memory.open(lived.path).verify())


def test_a_record_that_is_damaged_is_said_in_words(lived):
    from retrieval.store import history

    for text in ("", "{}", "[]", '{"action": 1'):
        with pytest.raises(RetrievalError, match="the record of version 3 is damaged"):
            history._parsed(3, text)


def test_a_manifest_with_a_flipped_bit_is_never_read(lived, rng):
    last, old = (
        lived.path / "passages.lance" / manifest_of(version) for version in (lived.version, 2)
    )
    for path, call in (
        (last, lambda: Memory.open(lived.path, encode)),
        (old, lambda: lived.as_of(2)),
        (old, lambda: lived.history("p0")),
    ):
        good = path.read_bytes()
        for _ in range(10):
            flip(path, rng)
            with pytest.raises(RetrievalError, match="verify"):
                call()
            path.write_bytes(good)
    assert len(lived.history("p0")) == 2 and lived.verify() == []


def test_a_newest_version_that_was_lost_is_missed_and_what_it_deleted_does_not_come_back(memory):
    memory.delete(["p3"])
    gone = memory.path / "passages.lance" / manifest_of(memory.version)
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(
        RetrievalError, match="version 3 was committed, and version 2 would be shown in its place"
    ):
        Memory.open(memory.path, encode)
    with pytest.raises(RetrievalError, match="version 3 was committed"):
        memory.add([Passage("new", "on top of what")])
    gone.write_bytes(content)
    assert "p3" not in state(Memory.open(memory.path, encode)) and memory.verify() == []
    gone.unlink()
    (memory.path / "checksums").unlink()
    assert "p3" in state(Memory.open(memory.path, encode)), "the way out that the error names"


def test_where_all_manifests_are_lost_no_memory_is_made_over_the_passages(memory):
    for manifest in (memory.path / "passages.lance" / "_versions").iterdir():
        manifest.unlink()
    noted = (memory.path / "checksums").read_bytes()
    with pytest.raises(RetrievalError, match="holds passages, but"):
        Memory.create(memory.path, encode)
    assert (memory.path / "checksums").read_bytes() == noted


def test_without_checksums_the_rows_are_looked_at_all_the_same(lived):
    lived._store._dataset.update({"text": "'forged'"}, where="id = 'p9'")
    (lived.path / "checksums").unlink()
    first, second = problems(lived.path)
    assert "checksums is missing" in first and second.startswith("passage 'p9'")


def test_what_fails_after_a_commit_does_not_say_that_nothing_was_changed(
    lived, monkeypatch, caplog
):
    def fail(*args, **how):
        raise OSError("no room for upkeep")

    monkeypatch.setattr("retrieval.store.store.tidied", fail)
    commit = lived.edit("p10", "edited all the same")
    assert "upkeep failed and will be tried again" in caplog.text and lived.log()[-1] == commit
    assert (
        Memory.open(lived.path, encode).get("p10").text == "edited all the same"
        and lived.verify() == []
    )
