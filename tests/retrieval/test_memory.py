import logging
import multiprocessing
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from retrieval import EVERY_GROUP, Filter, Memory, Passage, RetrievalError
from retrieval.index import approximate, scann_searcher, tuning
from tests.retrieval.toy import encode, state

ROOT = Path(__file__).parents[2]


def best(memory, text):
    return memory.search([text], 1)[0][0]


def test_add_edit_and_delete_are_seen_by_the_next_search_and_after_reopening(memory):
    assert best(memory, "town3").text == "town3 lies in land3"
    memory.edit("p3", "town3 moved to Atlantis")
    memory.add([Passage("new", "a volcano on an island")])
    memory.delete(["p5"])
    for seen in (memory, Memory.open(memory.path, encode)):
        hit = best(seen, "town3. town3 moved to Atlantis")
        assert (hit.id, hit.text, hit.title, hit.version, hit.metadata) == (
            "p3",
            "town3 moved to Atlantis",
            "town3",
            3,
            {"n": "3"},
        )
        assert hit.score == pytest.approx(1, abs=1e-3)
        assert best(seen, "volcano island").id == "new"
        assert "p5" not in {hit.id for hit in seen.search(["town5 lies in land5"], 99)[0]}
        assert len(seen) == 10


def test_an_unknown_id_is_answered_with_one_that_is_near(memory):
    memory.add([Passage("docs/guide.md#install:2", "text")])
    for id, near in (
        ("P3", "p3"),
        ("guide.md#install:2", "docs/guide.md#install:2"),
        ("docs/guide.md#instal:2", "docs/guide.md#install:2"),
    ):
        for change in (lambda id: memory.edit(id, "x"), lambda id: memory.delete([id]), memory.get):
            with pytest.raises(RetrievalError, match=re.escape(f"(did you mean {near!r}?)")):
                change(id)
    with pytest.raises(RetrievalError) as refused:
        memory.get("something else entirely")
    assert "did you mean" not in str(refused.value)


def test_an_edit_keeps_what_it_is_not_given_and_a_hit_carries_every_field(memory):
    memory.edit("p3", span=(4, 9), time="1998", tags=("town", "sea"), access="staff")
    memory.edit("p3", title="Port 3")
    hit = memory.search("town3", 1, groups=("staff",))[0][0]
    assert (hit.text, hit.title, hit.span, hit.time) == (
        "town3 lies in land3",
        "Port 3",
        (4, 9),
        "1998",
    )
    assert (hit.tags, hit.access, hit.version) == (("town", "sea"), "staff", 4)
    memory.edit("p3", text="town3 lies in land3")
    assert memory.get("p3").span == (4, 9), "the text is the same"
    memory.edit("p3", text="another text", span=(1, 2))
    assert memory.get("p3").span == (1, 2)
    memory.edit("p3", text="a third text")
    assert memory.get("p3").span is None, "the source does not say this there"
    with pytest.raises(RetrievalError, match="changes nothing"):
        memory.edit("p3")
    with pytest.raises(RetrievalError, match="expected ISO 8601"):
        memory.edit("p3", time="soon")


def test_two_edits_of_one_passage_that_meet_are_both_there(memory):
    other, encoder, calls = Memory.open(memory.path, encode), memory._encoder.encode, []

    def interrupted(texts):
        if not calls:
            calls.append(texts)
            other.edit("p3", title="Port 3", access="staff")
        return encoder(texts)

    memory._encoder.encode = interrupted
    memory.edit("p3", "town3 moved")
    passage = memory.get("p3")
    assert (passage.text, passage.title, passage.access) == ("town3 moved", "Port 3", "staff")
    assert memory.search(["Port 3. town3 moved"], 1, groups=["staff"])[0][0].score == pytest.approx(
        1, abs=1e-3
    )
    assert [commit.action for commit in memory.log()] == ["create", "add", "edit", "edit"]


def test_who_may_read_a_passage_is_changed_without_the_encoder(memory):
    before = memory._store.vectors(["p3"])[0]
    keeper = Memory.open(memory.path)
    keeper.edit("p3", access="staff", tags=("town",))
    assert memory.get("p3").access == "staff" and memory.verify() == []
    assert (memory._store.vectors(["p3"])[0] == before).all()
    with pytest.raises(RetrievalError, match="give it"):
        keeper.edit("p3", "a new text")


def test_an_update_encodes_only_what_no_passage_in_it_said_before(tmp_path):
    seen = []
    memory = Memory.create(tmp_path / "m", lambda texts: seen.extend(texts) or encode(texts))
    memory.add([Passage(f"p{i}", f"town{i} lies in land{i}") for i in range(5)])
    seen.clear()
    moved = [
        Passage("p1", "a new town"),
        *(Passage(f"p{i}", f"town{i - 1} lies in land{i - 1}", time="1998") for i in (2, 3, 4)),
    ]
    commit = memory.update(moved, "Ada", "one came in between")
    assert seen == ["a new town"] and (commit.action, commit.ids, commit.author) == (
        "edit",
        ("p1", "p2", "p3", "p4"),
        "Ada",
    )
    for handle in (memory, Memory.open(memory.path, encode)):
        assert [
            (hit.id, round(hit.score, 3)) for p in moved for hit in handle.search([p.text], 1)[0]
        ] == [(p.id, 1.0) for p in moved]
    with pytest.raises(RetrievalError, match="not in the memory: 'p9'"):
        memory.update([Passage("p1", "x"), Passage("p9", "y")])
    assert memory.get("p1").text == "a new town"


def test_undo_gives_back_text_vector_and_neighbours_exactly(memory):
    queries = [f"land{i}" for i in range(10)]
    before, texts = memory.search(queries, 10), state(memory)
    memory.delete(["p1", "p2"])
    memory.edit("p3", "something else")
    for _ in range(2):
        memory.undo()
    assert state(memory) == texts
    assert memory.search(queries, 10) == before
    assert Memory.open(memory.path, encode).search(queries, 10) == before


def test_every_version_is_searched_as_it_was(memory):
    memory.edit("p3", "town3 moved to Atlantis")
    memory.delete(["p3"])
    assert best(memory.as_of(2), "town3").text == "town3 lies in land3"
    assert best(memory.as_of(3), "Atlantis").text == "town3 moved to Atlantis"
    assert "p3" not in {hit.id for hit in memory.as_of(4).search(["Atlantis"], 99)[0]}
    assert memory.as_of(1).search(["Atlantis"]) == [[]] and len(memory.as_of(1)) == 0
    with pytest.raises(RetrievalError, match="view of the past"):
        memory.as_of(2).add([Passage("x", "y")])
    with pytest.raises(RetrievalError, match="view of the past"):
        memory.as_of(2).undo()
    memory.add([Passage("later", "text")])
    assert [c.version for c in memory.as_of(3).log()] == [1, 2, 3], (
        "a view of the past knows nothing later"
    )


def test_two_handles_see_each_other_at_the_next_search(memory):
    other = Memory.open(memory.path, encode)
    assert best(other, "town3").id == "p3"
    memory.delete(["p3"])
    assert best(other, "town3 lies in land3").id != "p3" and len(other) == 9
    other.add([Passage("o", "an octopus")])
    assert best(memory, "octopus").id == "o" and memory.get("o").text == "an octopus"


def test_many_changes_by_another_handle_are_caught_up_with(memory, monkeypatch):
    other = Memory.open(memory.path, encode)
    other.search(["x"])
    memory.add([Passage(f"n{i}", f"word{i} text") for i in range(1500)])
    assert best(other, "word777").id == "n777"


@pytest.mark.parametrize("name", ["dataset.npy", "ids.json", "scann_config.pb", "manifest.json"])
def test_a_damaged_index_is_rebuilt_and_says_so(memory, caplog, name):
    queries = ["town1", "land2 lies"]
    expected = memory.search(queries, 5)
    path = memory.path / "index" / "000001" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert Memory.open(memory.path, encode).search(queries, 5) == expected
    assert "rebuilt from the store" in caplog.text
    caplog.clear()
    assert Memory.open(memory.path, encode).search(queries, 5) == expected
    assert not caplog.text, "the rebuilt index was saved"


def test_an_index_from_another_history_is_not_used(memory, tmp_path):
    memory.search(["x"])
    other = Memory.create(tmp_path / "other", encode)
    other.add([Passage("a", "one"), Passage("b", "two")])
    # Another memory's index, with ids that are not in this store.
    (memory.path / "index").rename(other.path / "index")
    found = other.search(["town3"], 10)[0]
    assert {hit.id for hit in found} == {"a", "b"}


def test_a_saved_index_behind_the_store_catches_up(memory):
    memory.search(["x"])  # saves the index of version 2
    late = Memory.open(memory.path, encode)
    late.edit("p1", "changed while no index was loaded")
    late.delete(["p2"])
    seen = Memory.open(memory.path, encode)
    assert best(seen, "changed while index loaded").id == "p1"
    assert "p2" not in {hit.id for hit in seen.search(["town2"], 99)[0]}


def test_without_scann_a_memory_works_the_same(memory, monkeypatch):
    expected = memory.search(["town1", "land7"], 3)
    monkeypatch.setitem(sys.modules, scann_searcher.SCANN, None)
    seen = Memory.open(memory.path, encode)
    found = seen.search(["town1", "land7"], 3)
    assert isinstance(seen._handle.live_index.index, approximate.ExactIndex)
    assert [[hit.id for hit in row] for row in found] == [
        [hit.id for hit in row] for row in expected
    ]
    assert np.allclose(
        [hit.score for hit in found[0]], [hit.score for hit in expected[0]], atol=1e-5
    )


def test_another_encoder_is_refused_and_both_fingerprints_named(memory):
    with pytest.raises(RetrievalError, match=r"probe-[0-9a-f]+.*the one given is probe-[0-9a-f]+"):
        Memory.open(memory.path, lambda texts: -encode(texts))
    with pytest.raises(RetrievalError, match="the one given is"):
        Memory.open(memory.path, lambda texts: encode(texts)[:, :8])


def test_without_its_encoder_a_memory_can_be_read_and_undone_but_not_searched(memory):
    memory.delete(["p1"])
    seen = Memory.open(memory.path)
    assert seen.get("p2").title == "town2" and len(seen.log()) == 3
    seen.undo()
    assert len(seen) == 10
    with pytest.raises(RetrievalError, match="give it"):
        seen.search(["x"])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda texts: encode(texts) * np.nan, r"row 0 \(of .* holds NaN"),
        (lambda texts: encode(texts) * 0, "all zeros"),
        (lambda texts: encode(texts)[:-1], "vectors"),
        (lambda texts: encode(texts)[0], "shape"),
        (lambda texts: [["a"]], "no array of numbers"),
    ],
)
def test_an_encoder_that_answers_nonsense_makes_no_memory_and_changes_none(
    tmp_path, memory, wrong, message
):
    with pytest.raises(RetrievalError, match=message):
        Memory.create(tmp_path / "m", wrong)
    assert not (tmp_path / "m").exists()
    memory._encoder.encode = wrong
    with pytest.raises(RetrievalError, match=message):
        memory.add([Passage("x", "y")])
    assert memory.version == 2 and len(memory) == 10


def test_the_encoder_is_not_run_for_passages_that_will_be_refused(memory):
    def never(texts):
        raise AssertionError("the encoder ran")

    memory._encoder.encode = never
    for passages in (
        [Passage("p1", "again")],
        [Passage("x", "")],
        [Passage("y", "a"), Passage("y", "b")],
    ):
        with pytest.raises(RetrievalError):
            memory.add(passages)
    with pytest.raises(RetrievalError, match="'nope'"):
        memory.edit("nope", "text")


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.search(["x"], 0),
        lambda m: m.search(["x"], 1.5),
        lambda m: m.search([" "]),
        lambda m: m.search([None]),
        lambda m: m.get("nope"),
        lambda m: m.as_of(99),
        lambda m: m.delete(["nope"]),
        lambda m: m.delete([]),
    ],
)
def test_a_wrong_question_is_an_error_in_words(memory, call):
    with pytest.raises(RetrievalError):
        call(memory)
    assert memory.version == 2


@pytest.mark.parametrize(
    "junk",
    [None, 5, 1.5, b"x", object(), np.array(5), np.array([1]), [None], [["p1"]], [{}], EVERY_GROUP],
)
def test_what_is_no_list_of_texts_ids_or_passages_is_an_error_in_words(memory, junk):
    calls = [
        memory.search,
        memory.vectors,
        memory.delete,
        memory.add,
        memory.update,
        lambda m: memory.add([Passage("x", "y")], like=m),
        lambda m: Filter(any_tags=m),
        *([] if junk is EVERY_GROUP else [lambda m: memory.search("x", groups=m)]),
    ]
    for call in calls:
        with pytest.raises(RetrievalError):
            call(junk)
    assert memory.version == 2


def test_an_empty_memory_and_an_empty_question_list_have_empty_answers(tmp_path, memory):
    empty = Memory.create(tmp_path / "m", encode)
    assert empty.search(["x", "y"]) == [[], []] and len(empty) == 0
    assert memory.search([]) == [] and len(memory.search(["x"], 1000)[0]) == 10
    memory.delete([f"p{i}" for i in range(10)])
    assert memory.search(["x"]) == [[]]
    memory.add([Passage("p1", "back again")])
    assert best(memory, "back").id == "p1"


def test_a_string_given_for_a_list_is_one_thing_and_not_its_letters(memory):
    assert len(memory.search("town1", 1)) == 1
    memory.delete("p1")
    assert len(memory) == 9


def test_5500_passages_are_added_within_seconds(tmp_path):
    memory = Memory.create(
        tmp_path / "m",
        lambda texts: np.random.default_rng(len(texts)).normal(size=(len(texts), 384)),
    )
    started = time.monotonic()
    memory.add([Passage(f"c{i}", f"City {i} is in country {i % 200}.") for i in range(5_500)])
    memory.search(["x"] * 200, 5)
    assert time.monotonic() - started < 8


def test_searches_during_changes_come_from_one_version(memory):
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            ids = {hit.id for hit in memory.search(["twin"], 99)[0]}
            if ("x" in ids) != ("y" in ids):
                wrong.append(ids)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        memory.add([Passage("x", "twin one"), Passage("y", "twin two")])
        memory.delete(["x", "y"])
    stop.set()
    reader.join()
    assert not wrong


def _add_many(path, name, count):
    mine = Memory.open(path, encode)
    for i in range(count):
        mine.add([Passage(f"{name}{i}", f"{name} {i}")])
        if i % 3 == 0:
            mine.edit(f"{name}{i}", f"{name} {i} edited")


def test_two_processes_that_write_at_once_lose_nothing(memory):
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_add_many, args=(memory.path, name, 8)) for name in ("left", "right")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len(memory) == 26
    assert memory.get("left3").text == "left 3 edited" and memory.get("right4").text == "right 4"
    versions = [c.version for c in memory.log()]
    assert versions == sorted(set(versions)) and len(versions) == 2 + 2 * (8 + 3)


def test_two_processes_cannot_both_add_the_same_id(memory):
    from retrieval.store.store import Store

    first, second = Store.open(memory.path), Store.open(memory.path)
    first.add([Passage("same", "first")], encode(["first"]))
    with pytest.raises(RetrievalError, match="already in the memory: 'same'"):
        second.add([Passage("same", "second")], encode(["second"]))


def test_a_writer_that_waits_too_long_says_for_what(memory, monkeypatch):
    from retrieval.store import locks

    with (
        locks.file_lock(memory.path / "lock"),
        pytest.raises(RetrievalError, match="held by another writer"),
        locks.file_lock(memory.path / "lock", wait_seconds=0.05),
    ):
        pass


def test_an_index_that_trained_itself_is_saved_for_the_next_process(memory, monkeypatch):
    monkeypatch.setattr(tuning, "BRUTE_FORCE_BELOW", 300)
    memory.add([Passage(f"q{i}", f"field{i} borders on land{i % 10}") for i in range(400)])
    memory.search(["field3"], 1)
    memory._handle.live_index.index.wait()
    before = memory._handle.live_index.index.health()
    memory.add([Passage(f"r{i}", f"river{i} runs through field{i}") for i in range(300)])
    memory.search(["field3"], 1)
    memory._handle.live_index.index.wait()
    assert memory._handle.live_index.index.health()["trained_on"] == 710 > before["trained_on"]
    again = Memory.open(memory.path, encode)
    again.search(["field3"], 1)
    assert (
        again._handle.live_index.index.health()["trained_on"] == 710
        and not again._handle.live_index.index.health()["training"]
    )
