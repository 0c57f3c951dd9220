import datetime
import os
import threading
import time
from functools import partial

import lance
import numpy as np
import pytest

from retrieval import Diff, Filter, Memory, Passage, RetrievalError
from retrieval.encoders.encoding import PROBE
from retrieval.progress import chunks_with_progress
from retrieval.search.live_index import LiveIndex
from retrieval.store import checksums
from retrieval.store.locations import replace
from retrieval.store.locks import file_lock
from tests.retrieval.toy import encode, state


def best(memory, text):
    return memory.search([text], 1)[0][0]


def test_reembed_swaps_the_encoder_in_one_commit_and_the_past_keeps_its_own(memory, caplog):
    other, before = (
        (lambda texts: np.concatenate([-encode(texts), encode(texts)[:, :8]], axis=1)),
        memory.search(["land3"], 3),
    )
    elsewhere = Memory.open(memory.path, encode)
    with pytest.raises(RetrievalError, match=r"encoded with probe-.* already"):
        memory.reembed(encode)
    commit = Memory.open(memory.path).reembed(other, author="Ada", reason="a better one")
    memory = Memory.open(memory.path, other)
    assert (commit.version, commit.action, commit.author, commit.ids) == (3, "reembed", "Ada", ())
    for seen in (memory, Memory.open(memory.path, other)):
        assert best(seen, "town3. town3 lies in land3").score == pytest.approx(1, abs=1e-3)
        assert seen._handle.live_index.index.dim == 40 and best(seen, "town3").version == 2, (
            "the text is of version 2 still"
        )
    assert "rebuilt" not in caplog.text, "the saved index is of the new vectors"
    with pytest.raises(RetrievalError, match=r"re-encoded since it was opened.*open it again"):
        elsewhere.search(["land3"])
    with pytest.raises(RetrievalError, match="the one given is"):
        Memory.open(memory.path, encode)
    with pytest.raises(
        RetrievalError, match="no change left to undo since version 3, which changed the encoder"
    ):
        memory.undo()
    assert memory.diff(2, 3) == Diff((), (), ())
    with pytest.raises(RetrievalError, match="has no path: give it"):
        memory.as_of(2).search(["land3"])
    then = memory.as_of(2, encode).search(["land3"], 3)[0]
    assert [hit.id for hit in then] == [hit.id for hit in before[0]]
    assert [hit.score for hit in then] == pytest.approx([hit.score for hit in before[0]], abs=1e-6)
    memory.edit("p3", "town3 moved")
    memory.undo()
    assert best(memory, "town3 lies in land3").text == "town3 lies in land3"


def test_what_is_changed_while_reembed_encodes_is_encoded_too(memory):
    encoded = []

    def slow(texts):
        encoded.extend(texts)
        if len(encoded) == 11:  # the probe, and the ten passages
            Memory.open(memory.path, encode).edit("p3", "a late edit")
        return -encode(texts)

    memory.reembed(slow)
    assert encoded[11:] == ["town3. a late edit"]
    assert best(memory, "town3. a late edit").text == "a late edit" and memory.version == 4
    vectors, ids = memory._store.vectors()
    expected = -encode([memory._store.get([id])[id][0].searchable for id in ids])
    assert np.allclose(
        vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3
    )


def test_an_interrupted_reembed_goes_on_where_it_was(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("retrieval.progress.CHUNK", 4)
    monkeypatch.setattr(
        "retrieval.memory.chunks_with_progress", partial(chunks_with_progress, chunk=4)
    )
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage(f"p{i}", f"text {i % 12}") for i in range(14)])
    asked = []

    def other(texts, most):
        asked.extend(texts)
        if len(asked) > most:
            raise KeyboardInterrupt
        return -encode(texts)

    with pytest.raises(KeyboardInterrupt):
        memory.reembed(lambda texts: other(texts, 9))
    assert memory.version == 2 and len(asked) == 13, (
        "the probe, then two parts and one that was cut off"
    )
    part = next(tmp_path.glob("m/embedding-*"))
    for tear in (
        lambda raw: raw[:-3],
        lambda raw: raw[: len(raw) // 2 + 5] + b"?" + raw[len(raw) // 2 + 6 :],
    ):
        part.write_bytes(tear(part.read_bytes()))
        with pytest.raises(KeyboardInterrupt):
            memory.reembed(lambda texts: other(texts, 0) if texts != [PROBE] else -encode(texts))
    asked.clear()
    Memory.open(tmp_path / "m").reembed(lambda texts: other(texts, 99))
    assert (
        "texts are embedded already" in caplog.text
        and 5 < len(asked) < 12
        and len(set(asked)) == len(asked)
    )
    assert not list(tmp_path.glob("m/embedding-*"))
    vectors, ids = Memory.open(tmp_path / "m")._store.vectors()
    expected = -encode([f"text {int(id[1:]) % 12}" for id in ids])
    assert np.allclose(
        vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3
    )


def test_a_memory_put_aside_is_removed_only_where_another_took_its_place(memory):
    aside, place = memory.path.with_name(".memory.replaced"), memory.path
    place.rename(aside)  # as left by a process killed between the two moves
    place.mkdir()
    with pytest.raises(RetrievalError, match="without a memory"):
        Memory.open(place, encode)
    place.rmdir()
    with pytest.raises(RetrievalError, match="already holds a memory"):
        Memory.create(place, encode)
    assert len(Memory.open(place, encode)) == 10 and not aside.exists()
    aside.mkdir()
    assert len(Memory.open(place, encode)) == 10 and not aside.exists()


def test_a_handle_stays_on_its_folder_when_the_process_changes_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    memory = Memory.create("m", encode)
    monkeypatch.chdir("/")
    memory.add([Passage("a", "added from elsewhere")])
    assert best(memory, "elsewhere").id == "a" and [path.name for path in tmp_path.iterdir()] == [
        "m"
    ]


def test_stats_count_what_is_there(memory):
    memory.add(
        [
            Passage("t", "ten words", source="book", tags=("a", "b"), access="staff"),
            Passage("u", "x", tags=("a",)),
        ]
    )
    stats = memory.stats()
    assert (stats["passages"], stats["commits"], stats["version"], stats["dim"]) == (12, 3, 3, 32)
    assert (
        stats["tags"] == {"a": 2, "b": 1}
        and stats["access"] == {"": 11, "staff": 1}
        and stats["sources"] == 2
    )
    assert stats["characters"] == sum(map(len, state(memory).values()))
    assert stats["table_bytes"] > 1000 and stats["created"] <= stats["changed"]


def test_a_passage_s_history_and_a_moment_of_the_past_can_be_asked_for(memory):
    memory.edit("p3", "second", reason="a typo")
    memory.delete("p3")
    assert [(c.action, p and p.text) for c, p in memory.history("p3")][1:] == [
        ("edit", "second"),
        ("delete", None),
    ]
    with pytest.raises(RetrievalError, match="no passage 'nobody' was ever in"):
        memory.history("nobody")
    then = memory.log()[2].time
    assert memory.as_of(then).get("p3").text == "second" and memory.diff(2, then).edited == ("p3",)


def test_a_moment_without_a_zone_is_of_utc_as_text_and_local_as_a_datetime(memory, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        utc = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)
        local, text = (
            datetime.datetime.now() + datetime.timedelta(seconds=1),
            utc.replace(tzinfo=None).isoformat(),
        )
        for now in (
            utc,
            local,
            text,
            f"{text}Z",
            (utc + datetime.timedelta(hours=2)).isoformat()[:26] + "+02:00",
        ):
            assert memory.as_of(now).version == 2
        for early in (local - datetime.timedelta(hours=1), f"{text}+09:00"):
            with pytest.raises(RetrievalError, match="did not exist at"):
                memory.as_of(early)
        noon = Passage("noon", "noon", time="2026-01-02T12:00")  # UTC
        memory.add([noon])
        ids = lambda where: {hit.id for hit in memory.search("noon", 99, where=where)[0]}
        assert ids(Filter(after="2026-01-02T14:00+02:00", before="2026-01-02T12:01Z")) == {"noon"}
        assert ids(
            Filter(
                after=datetime.datetime(2026, 1, 2, 21), before=datetime.datetime(2026, 1, 2, 22)
            )
        ) == {"noon"}
        assert (
            ids(Filter(after=datetime.datetime(2026, 1, 2, 21, 1)))
            == ids(Filter(after="2026-01-02T14:01+02:00"))
            == set()
        )
        with pytest.raises(RetrievalError, match="did not exist at"):
            memory.as_of(datetime.datetime.min)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_version_is_no_version(memory):
    for ask in (
        lambda: memory.as_of(None),
        lambda: memory.diff(None, 1),
        lambda: memory.diff(1, None),
    ):
        with pytest.raises(RetrievalError, match="does not exist: expected a number from 1 to 2"):
            ask()


@pytest.mark.parametrize(
    "call",
    [
        lambda memory: memory.add(None),
        lambda memory: memory.add(5),
        lambda memory: memory.update(5),
        lambda memory: memory.delete(None),
        lambda memory: memory.delete([5]),
        lambda memory: memory.delete(b"x"),
        lambda memory: memory.delete(["p1"], author=5),
        lambda memory: memory.edit("p1", "x", reason=None),
        lambda memory: memory.edit("p1", "x", author=float("nan")),
        lambda memory: memory.undo(reason="x" * 10_001),
        lambda memory: memory.undo(author="\ud800"),
        lambda memory: memory.history(None),
        lambda memory: memory.search(None),
        lambda memory: memory.search(5),
        lambda memory: memory.search(["x"], groups=5),
        lambda memory: memory.search(["x"], mode=[]),
        lambda memory: memory.search(["x"], rerank=5),
        lambda memory: memory.search("x" * 1_000_001),
        lambda memory: memory.search(["x"], where=Filter(any_tags=None)),
        lambda memory: memory.search(["x"], where=Filter(all_tags=("",))),
        lambda memory: memory.search(["x"], where=Filter(after=0)),
        lambda memory: memory.reembed("path"),
        lambda memory: memory.as_of(1, 5),
        lambda memory: Memory.open(None),
        lambda memory: Memory.open("a\0b"),
        lambda memory: Memory.open("\ud800"),
        lambda memory: Memory.open(memory.path, "x"),
        lambda memory: Memory.create(None, encode),
        lambda memory: Memory.create(memory.path / "n", 5),
        lambda memory: Memory.create(memory.path / "lock" / "below", encode),
    ],
)
def test_what_is_of_a_wrong_type_is_named_and_changes_nothing(memory, call):
    before = state(memory)
    with pytest.raises(RetrievalError):
        call(memory)
    assert Memory.open(memory.path).version == 2 and state(memory) == before


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_more_than_there_are_of_any_number_gives_all_there_are(memory, mode):
    assert len(memory.search(["town lies in land"], 10**30, mode=mode)[0]) == 10


def test_a_very_long_query_is_searched_by_its_first_words(memory):
    assert memory.search(["town3 " + "word " * 150_000], 1, mode="lexical")[0][0].id == "p3"


def test_a_change_that_is_interrupted_after_its_commit_is_found_all_the_same(memory, monkeypatch):
    memory.search(["town3"])

    def interrupted(*_):
        raise KeyboardInterrupt

    for change in (lambda: memory.add([Passage("new", "a harbour")]), lambda: memory.delete("p3")):
        with monkeypatch.context() as pressed, pytest.raises(KeyboardInterrupt):
            pressed.setattr(LiveIndex, "catch_up", interrupted)
            change()
    assert best(memory, "a harbour").id == "new" and "p3" not in {
        hit.id for hit in memory.search(["town3"], 20)[0]
    }


def test_a_handle_on_a_memory_that_was_replaced_says_so_and_changes_nothing(memory, tmp_path):
    memory.search(["town3"])
    other = Memory.create(tmp_path / "other", encode)
    for i in range(3):
        other.add([Passage(f"new{i}", f"harbour{i}")])
    replace(memory.path, other.path)
    for call in (
        lambda: memory.search(["town3"]),
        lambda: memory.undo(),
        lambda: memory.add([Passage("x", "y")]),
        lambda: memory.log(),
        lambda: memory.as_of(1),
    ):
        with pytest.raises(
            RetrievalError, match="was replaced or moved since it was opened here: open it again"
        ):
            call()
    fresh = Memory.open(tmp_path / "memory", encode)
    assert best(fresh, "harbour1").id == "new1" and fresh.version == 4 and fresh.verify() == []


def another(tmp_path):
    made = Memory.create(tmp_path / "other", encode)
    made.add([Passage("new", "harbour")])
    return made.path


def test_a_memory_opened_while_another_takes_its_place_is_the_new_one_and_puts_nothing_back(
    memory, tmp_path, monkeypatch
):
    """Between the two renames the old memory is moved aside and nothing is in its place."""
    other, rename, opened, threads = another(tmp_path), os.rename, [], []

    def slowly(source, target):
        rename(source, target)
        if not threads:
            threads.append(
                threading.Thread(
                    target=lambda: opened.append(Memory.open(memory.path, encode).ids())
                )
            )
            threads[0].start()
            threads[0].join(0.3)

    monkeypatch.setattr(os, "rename", slowly)
    replace(memory.path, other)
    threads[0].join()
    assert opened == [["new"]] == [Memory.open(memory.path, encode).ids()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory"]


def test_a_memory_that_is_replaced_while_it_is_opened_is_opened_as_the_new_one(
    memory, tmp_path, monkeypatch
):
    other, newest, done = another(tmp_path), checksums.newest_noted, []

    def then_replaced(table):
        noted = newest(table)
        if not done:
            done.append(replace(memory.path, other))
        return noted

    memory.add([Passage("late", "a later version than the other memory has")])
    monkeypatch.setattr(checksums, "newest_noted", then_replaced)
    assert Memory.open(memory.path, encode).ids() == ["new"]


def test_a_replacement_waits_for_the_writer_in_the_old_memory(memory, tmp_path):
    other, swapped = another(tmp_path), threading.Event()
    thread = threading.Thread(target=lambda: (replace(memory.path, other), swapped.set()))
    with file_lock(memory.path / "lock"):
        thread.start()
        assert not swapped.wait(0.2)
    thread.join()
    with pytest.raises(RetrievalError, match="was replaced"):
        memory.add([Passage("x", "y")])
    assert Memory.open(memory.path, encode).ids() == ["new"]


def test_a_handle_does_not_write_into_a_table_that_has_become_newer(memory):
    other = Memory.open(memory.path, encode)
    dataset = lance.dataset(f"{memory.path}/passages.lance")
    dataset.update_schema_metadata({"openbook.format": "4"})
    for call in (lambda: other.add([Passage("new", "text")]), lambda: other.search(["town3"])):
        with pytest.raises(RetrievalError, match=r"format '4'.*install a newer openbook"):
            call()


@pytest.mark.parametrize("between", ["\u200c", "\u200d", "\u00a0", "\u3000"])
def test_joiners_and_other_spaces_are_ordinary_in_ids_and_tags(memory, between):
    name = f"a{between}b"
    memory.add([Passage(name, "text", tags=(name,), access=name)])
    assert [
        hit.id for hit in memory.search("text", 9, where=Filter(all_tags=(name,)), groups=[name])[0]
    ] == [name]
    memory.delete(name)
    with pytest.raises(RetrievalError, match="printable"):
        memory.add([Passage("a\u200bb\n", "text")])
