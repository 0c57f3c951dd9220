"""Duplicate detection agrees with comparing every pair, and dropping duplicates leaves none."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.ingest import duplicates
from retrieval.ingest.duplicates import Duplicate, find, jaccard, shingled, signatures


def shingles(text):
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def brute(a, b):
    """Jaccard similarity of the sets of five words, without hashes."""
    return len(a & b) / len(a | b)


@pytest.fixture
def texts(rng):
    """Return 250 texts of 20 to 200 words, 100 of them edited copies of 50 others."""
    made = [
        " ".join(f"w{i}" for i in rng.integers(0, 3000, rng.integers(20, 200))) for _ in range(150)
    ]
    for original in made[:50] * 2:
        words = original.split()
        for at in rng.integers(0, len(words), rng.integers(0, max(2, len(words) // 25))):
            words[at] = "new"
        made.append(" ".join(words))
    return [made[i] for i in rng.permutation(len(made))]


def test_what_is_found_is_what_comparing_every_pair_finds(texts):
    sets = enumerate(map(shingles, texts))
    pairs = {
        (i, j): s
        for (i, a), (j, b) in itertools.combinations(sets, 2)
        if (s := brute(a, b)) >= duplicates.NEAR
    }
    kept, expected = [], set()
    for j in range(len(texts)):
        (expected.add if any((i, j) in pairs for i in kept) else kept.append)(j)
    found = find(texts)
    assert len(expected) > 50 and {d.index for d in found} == expected
    assert all(d.of in kept and d.similarity == pytest.approx(pairs[d.of, d.index]) for d in found)


def test_signatures_estimate_the_jaccard_similarity_they_stand_for(texts):
    sets = [shingled(text) for text in texts]
    minima = signatures(sets)
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(texts)), 2)
        if 0.2 < jaccard(sets[i], sets[j]) < 1
    ]
    errors = [
        np.mean(minima[i] == minima[j]) - brute(shingles(texts[i]), shingles(texts[j]))
        for i, j in pairs
    ]
    assert len(errors) > 20 and np.abs(errors).max() < 0.16 and abs(np.mean(errors)) < 0.02


def test_case_width_and_spaces_make_no_difference_and_are_called_exact():
    assert find(["A  town", "a sea", "ａ\ntown", "A Sea"]) == [
        Duplicate(2, 0, 1.0, True),
        Duplicate(3, 1, 1.0, True),
    ]
    assert find([]) == [] and find(["", "!", "!!"]) == []


def test_a_copy_of_what_is_left_out_is_left_out_for_the_one_that_stays():
    long = " ".join(map(str, range(100)))
    assert [(d.index, d.of, d.exact) for d in find([long, long + " end", (long + " END")])] == [
        (1, 0, False),
        (2, 0, False),
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab ", max_size=12), max_size=12))
def test_leaving_duplicates_out_leaves_none(texts):
    out = {d.index for d in find(texts)}
    assert find([text for i, text in enumerate(texts) if i not in out]) == []
    assert all(d.of < d.index and d.of not in out for d in find(texts))


def test_twenty_thousand_texts_of_one_template_are_done_within_seconds():
    texts = [
        f"Town {i} is a city in land {i % 200}, it lies in region {i % 1000} and "
        f"{i * 37 % 99999} people live in it"
        for i in range(20_000)
    ]
    assert find(texts) == []


def test_as_many_copies_are_done_within_seconds():
    assert [found.of for found in find(["The same text."] * 40_000)] == [0] * 39_999
