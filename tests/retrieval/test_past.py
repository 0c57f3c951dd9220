import numpy as np
import pytest

from retrieval import Diff, Memory, Passage, RetrievalError
from tests.retrieval.toy import encode, state


def best(memory, text):
    return memory.search([text], 1)[0][0]


def test_reembed_swaps_the_encoder_in_one_commit_and_the_past_keeps_its_own(memory):
    other, before = (lambda texts: np.concatenate([-encode(texts), encode(texts)[:, :8]], axis=1)), memory.search(["land3"], 3)
    elsewhere = Memory.open(memory.path, encode)
    with pytest.raises(RetrievalError, match=r"encoded with probe-.* already"):
        memory.reembed(encode)
    commit = memory.reembed(other, author="Ada", reason="a better one")
    assert (commit.version, commit.action, commit.author, commit.ids) == (3, "reembed", "Ada", ())
    for seen in (memory, Memory.open(memory.path, other)):
        assert best(seen, "town3. town3 lies in land3").score == pytest.approx(1, abs=1e-3)
        assert seen._index.dim == 40 and best(seen, "town3").version == 2, "the text is of version 2 still"
    with pytest.raises(RetrievalError, match=r"re-encoded since it was opened.*open it again"):
        elsewhere.search(["land3"])
    with pytest.raises(RetrievalError, match="the one given is"):
        Memory.open(memory.path, encode)
    with pytest.raises(RetrievalError, match="no change left to undo since version 3, which changed the encoder"):
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
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3)


def test_stats_count_what_is_there(memory):
    memory.add([Passage("t", "ten words", source="book", tags=("a", "b"), access="staff"), Passage("u", "x", tags=("a",))])
    stats = memory.stats()
    assert (stats["passages"], stats["commits"], stats["version"], stats["dim"]) == (12, 3, 3, 32)
    assert stats["tags"] == {"a": 2, "b": 1} and stats["access"] == {"": 11, "staff": 1} and stats["sources"] == 2
    assert stats["characters"] == sum(map(len, state(memory).values()))
    assert stats["table_bytes"] > 1000 and stats["created"] <= stats["changed"]


def test_a_passage_s_history_and_a_moment_of_the_past_can_be_asked_for(memory):
    memory.edit("p3", "second", reason="a typo")
    memory.delete("p3")
    assert [(c.action, p and p.text) for c, p in memory.history("p3")][1:] == [("edit", "second"), ("delete", None)]
    then = memory.log()[2].time
    assert memory.as_of(then).get("p3").text == "second" and memory.diff(2, then).edited == ("p3",)
