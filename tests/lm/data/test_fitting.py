"""Packing of examples: each example whole and once, no row over capacity, all drops counted."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import packed as packed_rows
from lm.data import packing
from lm.data.encode import fitting
from lm.data.encode.encoding import Encoded
from lm.data.encode.fitting import Limits
from lm.data.read.sources import DataError

sizes = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=40)


def example(asked, answer, number=0, pair=False):
    """An example with distinct ids, `answer` of them trained; a pair's encoder reads the prompt."""
    base = 1000 + 100 * number
    prompt, response = np.arange(base, base + asked), np.arange(base + 50, base + 50 + answer)
    ids = np.array([7, *response] if pair else [*prompt, *response], np.int32)
    trained = np.arange(len(ids)) >= len(ids) - answer
    read = prompt.astype(np.int32) if pair else np.zeros(0, np.int32)
    return Encoded(ids, trained, len(ids) - answer, read, answer, keep=(1, 1) if pair else (1, 0))


@settings(max_examples=40)
@given(sizes, st.booleans())
def test_an_example_is_split_lost_doubled_or_asked_for_the_wrong_tokens(lengths, pair):
    examples = [example(asked, answer, i, pair) for i, (answer, asked) in enumerate(lengths)]
    packed = fitting.pack(examples, Limits(32, 24 if pair else 0))
    for row, segment, document in zip(
        packed.piece_row, packed.piece_segment, packed.piece_document, strict=True
    ):
        here, e = packed.segments[row] == segment, examples[document]
        assert np.all(np.diff(np.flatnonzero(here)) == 1)
        assert packed.tokens[row][here].tolist() == e.ids[:-1].tolist()
        assert packed.targets[row][here].tolist() == e.ids[1:].tolist()
        assert packed.extra["weights"][row][here].tolist() == e.trained[1:].tolist()
        if pair:
            heard = packed.extra["encoder_segments"][row] == segment
            assert packed.extra["encoder_tokens"][row][heard].tolist() == e.read.tolist()
    assert sorted(packed.piece_document) == list(range(len(examples)))
    assert not packed.extra["weights"][packed.segments == 0].any()
    stats = packed.stats()
    assert (
        stats["trained_tokens"] == sum(answer for answer, _ in lengths)
        and stats["split_documents"] == 0
    )
    assert stats["bytes"] == stats["trained_tokens"]


def test_a_prompt_s_weight_is_on_an_answer_or_on_padding():
    examples = [example(5, 3, 0), example(2, 4, 1)]
    packed = fitting.pack(examples, Limits(32), prompt_weight=0.25)
    (weights,), (segments,) = packed.extra["weights"], packed.segments
    for row, segment, document in zip(
        packed.piece_row, packed.piece_segment, packed.piece_document, strict=True
    ):
        assert weights[packed.segments[row] == segment].tolist() == [
            1.0 if on else 0.25 for on in examples[document].trained[1:]
        ]
    assert not weights[segments == 0].any() and weights.sum() == 7 + 0.25 * (4 + 1)


@given(sizes)
def test_a_row_of_two_capacities_is_overfull(lengths):
    pairs = np.array(lengths)
    rows = packing.best_fit_two(pairs, (12, 20))
    for side, capacity in enumerate((12, 20)):
        assert np.bincount(rows, pairs[:, side]).max() <= capacity
    assert set(rows) == set(range(rows.max() + 1))


def test_a_tenth_of_the_rows_is_padding(monkeypatch):
    # Lengths of instructions and answers are distributed like this: many short, a long tail.
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.5, 0.9, (4000, 2)).astype(int), 4, 1000)
    rows = packing.best_fit(lengths.sum(axis=1).tolist(), 2048)
    assert lengths.sum() / ((rows.max() + 1) * 2048) > 0.98
    capacity = (512, 1024)  # capacities that differ by a factor of two
    lengths = np.minimum(np.stack([lengths[:, 0] // 2, lengths[:, 1]], 1), capacity)
    for most in (packing.OPEN_ROWS, 32):
        monkeypatch.setattr(packing, "OPEN_ROWS", most)
        rows = packing.best_fit_two(lengths, capacity)
        assert (lengths.sum(axis=0) / ((rows.max() + 1) * np.array(capacity))).max() > 0.9


def test_what_is_too_long_is_cut_or_left_out_in_silence():
    examples = [example(4, 4, i) for i in range(98)] + [example(9, 4, 98), example(2, 14, 99)]
    with pytest.raises(
        DataError,
        match=(
            r"x: 2 of 100 examples \(2\.0%\) are longer than a row of 10 tokens, the longest 15; "
            r"task\.max_long=0\.01"
        ),
    ):
        fitting.pack(examples, Limits(10), "x")
    with pytest.raises(DataError, match=r"none is allowed \(task\.too_long='raise'\)"):
        fitting.pack(examples, Limits(10, too_long="raise", most=1.0))
    dropped = fitting.pack(examples, Limits(10, most=0.02), counts={"bad_records": 3}).stats()
    assert {
        name: dropped[name]
        for name in (
            "documents",
            "dropped_prompts",
            "dropped_responses",
            "truncated_prompts",
            "bad_records",
        )
    } == {
        "documents": 98,
        "dropped_prompts": 1,
        "dropped_responses": 1,
        "truncated_prompts": 0,
        "bad_records": 3,
    }
    kept, counts = fitting.fitted(examples, Limits(10, too_long="truncate_prompt", most=0.02))
    assert len(kept) == 99 and (
        counts["truncated_prompts"],
        counts["dropped_responses"],
        counts["cut_tokens"],
    ) == (1, 1, 2 + 16)
    whole, cut = examples[98], kept[98]
    assert (
        cut.ids.tolist() == [whole.ids[0], *whole.ids[3:]]
        and cut.trained.sum() == 4
        and cut.prompt == whole.prompt - 2
    )
    with pytest.raises(DataError, match="none of 1 examples fits"):
        fitting.pack([example(9, 9)], Limits(10, most=1.0))
    with pytest.raises(DataError, match="x holds no example"):
        fitting.pack([], Limits(10), "x")


def test_an_encoders_prompt_loses_its_start_or_end_token():
    e = example(12, 4, pair=True)
    (cut,), counts = fitting.fitted([e], Limits(8, 9, "truncate_prompt", 1.0))
    assert (
        cut.read.tolist() == [e.read[0], *e.read[4:]]
        and cut.ids.tolist() == e.ids.tolist()
        and counts["cut_tokens"] == 3
    )
    assert fitting.fitted([e, e], Limits(8, 12))[1]["dropped_prompts"] == 0
    long = example(4, 12, pair=True)
    with pytest.raises(DataError, match="none of 1"):
        fitting.fitted([long], Limits(8, 9, "truncate_prompt", 1.0))


def test_a_template_s_own_cuts_and_the_counts_are_forgotten_on_disk(tmp_path):
    packed = fitting.pack([dataclasses.replace(example(4, 4), cut=3), example(4, 4, 1)], Limits(10))
    assert packed.stats()["cut_by_template"] == 1
    packed_rows.save(packed, tmp_path / "rows")
    assert packed_rows.load(tmp_path / "rows").stats() == packed.stats()
