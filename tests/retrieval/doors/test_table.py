"""Every door with every architecture: one edit changes the next answer, and undo restores it.

And what is not in the table is refused in words, before anything is loaded.
"""

import pytest

import lm
from lm.families import preset
from retrieval import Memory, Passage, answer
from retrieval.doors.door import DEFAULT, HOMES, named
from retrieval.errors import RetrievalError
from retrieval.reading.answering import View
from retrieval.reading.auditing import Without
from retrieval.reading.reader import door_of, load_reader
from tests.retrieval.doors.readers import extractor, reader
from tests.retrieval.models import save_encoder, save_reader
from tests.retrieval.toy import encode

pytestmark = pytest.mark.usefixtures("compiled_once")

WRITERS = ("gpt2", "mamba", "bart", "t5")
STRIDE = "in_context,stride=2"
# The best passage has most of the weight, so that its edit changes the most probable tokens.
SHARP = ("replug", "rag_token", "rag_sequence")
DOORS = [f"{door},temperature=0.01" if door in SHARP else door for door in (*HOMES, STRIDE)]
CELLS = {(door, family) for door in DOORS for family in WRITERS}
CELLS -= {("fid", "gpt2"), ("fid", "mamba")}
CELLS |= {(DEFAULT, "spans"), (DEFAULT, "classes")}
QUICK = {(door, "gpt2") for door in DOORS if door != "fid"} | {("fid", "t5")}
QUICK |= {(DEFAULT, "spans"), (DEFAULT, "classes")}
HEADS = {"spans": "question_answering", "classes": "sequence_classification"}
QUESTION = "town3 lies in which land"


@pytest.mark.parametrize(
    "door, family",
    [
        pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow])
        for cell in sorted(CELLS)
    ],
)
def test_an_edit_changes_the_next_answer_and_undo_restores_the_old_one(door, family, memory):
    made = extractor(HEADS[family]) if family in HEADS else reader(family)
    asked = lambda: answer([QUESTION], memory, made, k=3, max_new_tokens=4, door=named(door))[0]
    old = asked()
    assert {hit.id for hit in old.citations} and old.text != old.closed_book_text
    memory.edit("p3", "town3 lies in quizzicalfoxyjumpingwaltz")
    new = asked()
    assert new.text != old.text and new.closed_book_text == old.closed_book_text
    assert [hit.version for hit in new.citations if hit.id == "p3"] == [3]
    memory.undo()
    again = asked()
    assert (again.text, again.closed_book_text) == (old.text, old.closed_book_text)
    texts = lambda given: [(hit.id, hit.text) for hit in given.citations]
    assert texts(again) == texts(old) != texts(new)


def test_an_answer_in_strides_is_of_one_version(memory, monkeypatch):
    made, door = reader("gpt2"), named(STRIDE)
    view = Without(View(memory, {"groups": ["board"]}), ["p8"])
    asked = lambda: answer([QUESTION], view, made, k=3, max_new_tokens=4, door=door)[0]
    old, search, searches = asked(), memory.search, []

    def changing(*args, **options):
        searches.append(args)
        if len(searches) == 2:
            memory.edit("p3", "town3 lies in quizzicalfoxyjumpingwaltz")
        return search(*args, **options)

    monkeypatch.setattr(memory, "search", changing)
    during = asked()
    of = lambda given: (given.text, [(hit.id, hit.text, hit.version) for hit in given.citations])
    assert of(during) == of(old) and len(searches) == 2
    assert asked().text != old.text


def test_an_extractor_copies_a_span_of_the_passage_it_cites(memory):
    given = answer([QUESTION], memory, extractor(HEADS["spans"]), k=3)[0]
    first = given.citations[0]
    assert given.text in f"{first.title}. {first.text}" and not given.closed_book_text


def test_a_passage_longer_than_a_window_is_read_whole_by_an_extractor(tmp_path):
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage("long", "and so on " * 60 + "the end")])
    made = extractor(HEADS["spans"])
    given = answer(["which end"], memory, made, k=1)[0]
    assert given.text and given.cut == 0
    labelled = answer(["which end"], memory, extractor(HEADS["classes"]), k=1)[0]
    assert labelled.text.startswith("LABEL_") and labelled.cut > 100


@pytest.mark.parametrize(
    "door, family, message",
    [
        ("fid", "gpt2", "a gpt2 model here is a decoder, and this door serves an encoder-decoder"),
        ("fid", "mamba", "a mamba model here is a decoder, and this door serves"),
        ("replug", "bert", "is an encoder with a head for answer spans, and this door serves a"),
        (STRIDE, "bert", "stride=2: an encoder with a head for answer spans writes no tokens"),
    ],
)
def test_what_is_not_in_the_table_is_refused_in_words(door, family, message):
    head = {"head": "question_answering", "pooler": False} if family == "bert" else {}
    c = preset(family, "tiny").replace(vocab_size=64, **head)
    assert message in named(door).why_not(c)


def test_a_pair_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    save_reader(tmp_path / "reader")
    save_encoder(tmp_path / "encoder")
    monkeypatch.setattr(lm.weights.loading, "load", None)
    with pytest.raises(RetrievalError, match=r"reader: --door=fid: a llama model here is a dec"):
        door_of(str(tmp_path / "reader"), "fid")
    with pytest.raises(RetrievalError, match=r"reader: --door=fid: a llama model here is a dec"):
        load_reader(str(tmp_path / "reader"), named("fid"))
    with pytest.raises(RetrievalError, match=r"encoder: a bert model with head='none' answers no"):
        door_of(str(tmp_path / "encoder"))
    assert door_of(str(tmp_path / "reader")) == named(DEFAULT)
