"""Packed rows contain every prediction of every document once, and nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data import packing, tokenizers
from lm.data.encode import plain_text
from lm.data.read.sources import DataError

documents = st.lists(
    st.lists(st.integers(3, 300), min_size=0, max_size=40), min_size=1, max_size=12
)


def encoded(texts):
    """Put each document between a start token (1) and an end-of-text token (2)."""
    return [(np.array([1, *ids, 2], np.int32), len(ids)) for ids in texts]


@given(documents, st.integers(1, 16))
def test_a_prediction_is_lost_doubled_or_mixed_with_another_document(texts, length):
    packed = plain_text.pack(encoded(texts), length)
    found = {d: [] for d in range(len(texts))}
    for row, segment, document in zip(
        packed.piece_row, packed.piece_segment, packed.piece_document, strict=True
    ):
        here = packed.segments[row] == segment
        assert np.all(np.diff(np.flatnonzero(here)) == 1), "a piece is torn apart"
        found[document] += list(
            zip(packed.tokens[row][here], packed.targets[row][here], strict=True)
        )
    for document, ids in enumerate(texts):
        whole = [1, *ids, 2]
        assert found[document] == list(itertools.pairwise(whole))
    assert packed.stats()["predictions"] == sum(len(ids) + 1 for ids in texts)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_overfills_a_row_or_wastes_rows(sizes):
    rows = packing.best_fit(sizes, 20)
    used = np.bincount(rows, sizes)
    assert used.max() <= 20
    assert np.all(used > 0)
    # Best-fit decreasing needs at most 11/9 OPT + 1 rows (Johnson 1973). OPT is at least the sum of
    # sizes over the capacity.
    assert (
        len(used)
        <= 11 / 9 * max(np.ceil(sum(sizes) / 20), sum(s > 10 for s in sizes))
        + sum(6 < s <= 10 for s in sizes) / 2
        + 1
    )


def test_the_end_of_text_token_is_not_trained():
    tokenizer = tokenizers.bytes_only()
    packed = plain_text.pack(plain_text.encode(["ab", "c"], tokenizer), 8)
    end = tokenizer.eos_token_id
    assert np.count_nonzero((packed.targets == end) & (packed.segments > 0)) == 2


def test_a_control_token_spelled_out_in_a_text_ends_the_document():
    tokenizer = tokenizers.bytes_only()
    ((ids, size),) = plain_text.encode(["a<|endoftext|>b"], tokenizer)
    assert list(ids).count(tokenizer.eos_token_id) == 2  # only the first and the last token
    assert (len(ids), size) == (17, 15)


def test_a_tokenizer_without_an_end_is_accepted():
    tokenizer = tokenizers.bytes_only()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        list(plain_text.encode(["a"], tokenizer))


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_corpus_is_trained_on(tmp_path, content):
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(DataError, match=r"x.txt is empty: no document"):
        plain_text.pack_files(
            str(tmp_path / "x.txt"), tokenizers.bytes_only(), 8, tmp_path / "cache"
        )
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_the_cache_is_not_used_or_used_for_other_content(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("some text, longer than a row")
    pack = lambda length=8: plain_text.pack_files(
        str(tmp_path / "x.txt"), tokenizers.bytes_only(), length, tmp_path / "cache"
    )
    first = pack()
    with monkeypatch.context() as m:
        m.setattr(plain_text, "pack", lambda *_: pytest.fail("packed again"))
        again = pack()
    for name in ("tokens", "targets", "segments", "document_bytes"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert pack(4).length == 4
    (tmp_path / "x.txt").write_text("other text, longer than a row")
    assert not np.array_equal(pack().tokens, first.tokens)
