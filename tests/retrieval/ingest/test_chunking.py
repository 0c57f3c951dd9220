"""Passages are spans of their document: whole sentences if they fit, within the token limit."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import RetrievalError
from retrieval.ingest.chunking import Chunking, pack, passages, token_counter
from retrieval.ingest.documents import Document, Heading
from retrieval.ingest.formats import markdown
from retrieval.ingest.sentences import sentences
from retrieval.passages import check_passages
from tests.retrieval.models import byte_tokenizer, word_tokenizer


def count(texts):
    """One token per letter."""
    return [len("".join(text.split())) for text in texts]


def cut(text, way="sentences", size=20, overlap=0, **fields):
    document = Document("d", text, "d", source="d", **fields)
    return list(passages(document, Chunking(way, size, overlap), count))


def texts(*args, **options):
    return [passage.text for passage in cut(*args, **options)]


words = st.text("abcXYZ.!? \n\u3002\u00e9\U0001f600", min_size=1, max_size=200)
ways = st.sampled_from(["sentences", "headings", "tokens"])


@settings(max_examples=300, deadline=None)
@given(words, ways, st.integers(8, 40), st.integers(0, 4))
def test_a_passage_is_its_span_and_fits_and_together_they_hold_every_word(text, way, size, overlap):
    found = cut(text, way, size, overlap)
    seen = set()
    for passage in found:
        start, end = passage.span
        assert (
            passage.text == " ".join(text[start:end].split())
            and text[start:end] == text[start:end].strip()
        )
        assert count([passage.text])[0] <= size
        seen.update(range(start, end))
    assert all(i in seen for i, character in enumerate(text) if not character.isspace())
    starts = [passage.span for passage in found]
    assert starts == sorted(starts) and len(set(starts)) == len(starts), (
        "each begins, and ends, after the one before"
    )
    assert overlap or all(a[1] <= b[0] for a, b in itertools.pairwise(starts)), (
        "without overlap nothing is there twice"
    )
    check_passages(found)


@settings(max_examples=200, deadline=None)
@given(words, st.integers(8, 40), st.integers(0, 4))
def test_no_sentence_that_fits_is_split(text, size, overlap):
    borders = {
        border for passage in cut(text, "headings", size, overlap) for border in passage.span
    }
    for start, end in sentences(text, 0, len(text)):
        inside = [border for border in borders if start < border < end]
        assert not inside or count([text[start:end]])[0] > size


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=30), st.integers(12, 40), st.integers(0, 20))
def test_a_passage_repeats_at_most_the_overlap_and_always_goes_on(tokens, room, overlap):
    units = [(i, i + 1, n) for i, n in enumerate(tokens)]
    found = list(pack(units, room, overlap))
    for (start, end), (later, last) in itertools.pairwise(found):
        assert start < later <= end < last and sum(tokens[later:end]) <= overlap
    assert all(sum(tokens[start:end]) <= room for start, end in found)
    assert sorted({i for span in found for i in range(*span)}) == list(range(len(tokens)))


def test_overlap_repeats_whole_sentences():
    assert texts("Aaa bbb. Ccc. Ddd eee. Fff.", size=11, overlap=4) == [
        "Aaa bbb. Ccc.",
        "Ccc. Ddd eee.",
        "Fff.",
    ]
    assert texts("Aaaa. Bbbb. Cccc. Dddd.", size=10, overlap=5) == [
        "Aaaa. Bbbb.",
        "Bbbb. Cccc.",
        "Cccc. Dddd.",
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Dr. Smith met J. R. Jones. He left.", ["Dr. Smith met J. R. Jones.", "He left."]),
        (
            'The U.S. Army, e.g. its corps. Then?! "Yes." No',
            ["The U.S. Army, e.g. its corps.", "Then?!", '"Yes."', "No"],
        ),
        ("It costs 3.50 euro. 2. Buy it", ["It costs 3.50 euro.", "2.", "Buy it"]),
        ("1. First thing. 2", ["1. First thing.", "2"]),
        ("see p. 3 of it. and so on", ["see p. 3 of it. and so on"]),
        ("你好。再见！好", ["你好。", "再见！", "好"]),
        ("यह एक है। यह दो है॥ तीन", ["यह एक है।", "यह दो है॥", "तीन"]),
        ("یہ ہے۔ کیا؟ ہاں", ["یہ ہے۔", "کیا؟", "ہاں"]),
        ("Մեկ։ Երկու։", ["Մեկ։", "Երկու։"]),
        ("አንድ። ሁለት።", ["አንድ።", "ሁለት።"]),
        ("ｱ｡ｲ．「ウ。」エ", ["ｱ｡", "ｲ．", "「ウ。」", "エ"]),
        ("等等……走了；好", ["等等……", "走了；", "好"]),
        ("Τι είναι; Αυτό.", ["Τι είναι;", "Αυτό."]),
        ("ฉันรักแมว เธอรักหมา", ["ฉันรักแมว", "เธอรักหมา"]),
        ("စာ။ စာ။", ["စာ။", "စာ။"]),
        ("ខ្ញុំ។ អ្នក។", ["ខ្ញុំ។", "អ្នក។"]),
        ("Wait… for it; yes. No", ["Wait…", "for it; yes.", "No"]),
        ("A title\n\nIts text\ngoes on", ["A title", "Its text\ngoes on"]),
        ("Buy:\n- milk\n- bread\n", ["Buy:", "- milk", "- bread"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, expected):
    assert [text[start:end] for start, end in sentences(text, 0, len(text))] == expected


def test_paragraphs_are_never_joined_by_sentences_and_always_by_headings_when_they_fit():
    text = "One. Two.\n\nThree."
    assert texts(text, size=20) == ["One. Two.", "Three."]
    assert texts(text, "headings", size=20) == ["One. Two. Three."]
    assert texts(text, "none") == ["One. Two. Three."]
    assert texts(text, "tokens", size=10) == ["One. Two.", "Three."]


def test_what_is_too_long_is_cut_between_lines_then_words_then_anywhere():
    assert texts("aaaa bbb\ncccc ddd", size=8) == ["aaaa bbb", "cccc ddd"]
    assert texts("aaaa bbb cccc ddd", size=8) == ["aaaa bbb", "cccc ddd"]
    assert texts("a" * 20, size=8) == ["a" * 8, "a" * 8, "a" * 4]


def test_a_word_of_ten_megabytes_is_cut_within_seconds_and_every_piece_fits():
    found = cut("x" * 10_000_000, size=200)
    assert (
        sum(len(passage.text) for passage in found) == 10_000_000
        and max(count([p.text for p in found])) <= 200
    )


def test_a_passage_is_named_by_the_headings_above_it_and_its_title_says_them():
    text = "# Guide\n\nHello.\n\n## Install\n\n### On *Linux*\n\nRun it.\n\n## Install\n\nAgain.\n"
    found = cut(
        text,
        "headings",
        size=60,
        **{k: v for k, v in markdown(text.encode()).items() if k not in ("text", "way")},
    )
    assert [(p.id, p.title, p.text) for p in found] == [
        ("d:1", "Guide", "Hello."),
        ("d#install/on-linux:1", "Guide > Install > On Linux", "Run it."),
        ("d#install:1", "Guide > Install", "Again."),
    ]
    assert [text[slice(*p.span)] for p in found] == ["Hello.", "Run it.", "Again."]


def test_headings_that_differ_in_signs_have_ids_of_their_own():
    said = markdown(
        b"# C#\n\nOne.\n\n# C\n\nTwo.\n\n# C++\n\nThree.\n\n# A & B\n\nFour.\n\n# A B\n\nFive.\n"
    )
    found = {
        p.id: p.text
        for p in passages(
            Document("d", where="d", **(said | {"title": ""})), Chunking("headings"), count
        )
    }
    (marked,) = (id for id in found if id.startswith("d#a-b~"))
    assert found == {
        "d#c#:1": "One.",
        "d#c:1": "Two.",
        "d#c++:1": "Three.",
        marked: "Four.",
        "d#a-b:1": "Five.",
    }


def test_a_heading_with_nothing_under_it_is_a_passage_itself():
    said = markdown(b"# T\n\n## Never mix A and B\n\n## Next\n\n### Deep\n\nText.\n\n## Last\n")
    found = [
        (p.id, p.title, p.text)
        for p in passages(Document("d.md", where="d.md", **said), Chunking(), count)
    ]
    assert found == [
        ("d.md#never-mix-a-and-b:1", "T > Never mix A and B", "## Never mix A and B"),
        ("d.md#next/deep:1", "T > Next > Deep", "Text."),
        ("d.md#last:1", "T > Last", "## Last"),
    ]


def test_a_row_of_stops_is_looked_at_once():
    text = "." * 200_000 + "x" + "?!" * 100_000 + " End. Well?) Yes"
    assert [text[start:end] for start, end in sentences(text, 0, len(text))][1:] == [
        "End.",
        "Well?)",
        "Yes",
    ]


def test_the_space_before_a_word_is_counted_where_it_takes_a_token():
    spaces = lambda texts: [len(text) for text in texts]  # as a byte tokenizer
    found = list(passages(Document("d", "12 345 6 78 " * 20, "d"), Chunking("tokens", 24), spaces))
    assert max(len(passage.text) for passage in found) <= 24


def test_a_title_takes_its_tokens_from_the_text():
    heading = (Heading(0, 9, 1, "Bbbb cccc"),)
    (first, second) = cut("Bbbb cccc\nAaaaa. Ddddd.", "headings", size=16, headings=heading)
    assert (first.text, second.text) == ("Aaaaa.", "Ddddd."), (
        "9 of 16 tokens are the title's, so 8 are left: half, at least"
    )
    assert texts("Bbbb cccc\nAaaaa. Ddddd.", "headings", size=21, headings=heading) == [
        "Aaaaa. Ddddd."
    ]


def test_a_row_stays_whole_when_it_fits_and_keeps_its_id_when_it_does_not():
    (whole,) = cut("Aaa.\n\n bbb", whole=True, size=10)
    assert (whole.id, whole.text, whole.span) == ("d", "Aaa.\n\n bbb", None)
    assert [p.id for p in cut("Aaaaaaaa. Bbbbbbbb.", whole=True, size=10)] == ["d", "d:2"]
    assert len(cut("Aaaaaaaa. Bbbbbbbb.", "none", whole=True, size=10)) == 1
    assert len(cut("Aaa.", title="t" * 20, whole=True, size=10)) == 1


def test_a_row_that_says_where_it_stands_in_its_source_is_found_there_whole_or_cut():
    assert [p.span for p in cut("Aaa.", whole=True, size=10, span=(100, 104))] == [(100, 104)]
    assert [p.span for p in cut("Aaaaaaaa. Bbbbbbbb.", whole=True, size=10, span=(100, 119))] == [
        (100, 109),
        (110, 119),
    ]


def test_an_id_stays_short_and_distinct_however_deep_the_folders():
    long = "folder/" * 100
    ids = {
        next(passages(Document(long + name, "text", "d"), Chunking(), count)).id
        for name in ("a", "b")
    }
    assert len(ids) == 2 and all(len(id) <= 512 for id in ids)


def test_a_page_is_told():
    found = cut("One.\nTwo. Three.\n\nFour.", pages=(0, 5, 18))
    assert [(p.text, p.metadata) for p in found] == [
        ("One. Two. Three.", {"page": "1"}),
        ("Four.", {"page": "3"}),
    ]


@pytest.mark.parametrize("tokenizer", [word_tokenizer(), byte_tokenizer()], ids=["words", "bytes"])
def test_tokens_are_counted_as_the_encoder_counts_them(tokenizer):
    texts = ["Some words, and more. " * 100, "", "\u00e9\U0001f600"]
    assert token_counter(tokenizer)(texts) == [
        len(tokenizer.encode(text, add_special_tokens=False)) for text in texts
    ]
    text = "Some words, and more! " * 200
    for passage in passages(
        Document("d", text, "d"), Chunking("sentences", 62), token_counter(tokenizer)
    ):
        assert len(tokenizer.encode(passage.searchable, add_special_tokens=False)) <= 62
    blob = list(
        passages(
            Document("d", "x" * 300_000, "d"), Chunking("sentences", 62), token_counter(tokenizer)
        )
    )
    assert max(len(passage.text) for passage in blob) <= 62 * 32, (
        "to BERT a long word is one unknown token"
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(way="pages"), "chunk='pages' is unknown: expected one of auto"),
        (dict(size=7), "size=7"),
        (dict(size=20, overlap=11), "overlap=11: expected 0 to 10"),
        (dict(overlap=-1), "overlap=-1"),
    ],
)
def test_a_wrong_way_of_cutting_is_refused(wrong, message):
    with pytest.raises(RetrievalError, match=message):
        Chunking(**wrong)
