"""Mixtures: exact proportions, a function of position and seed, whole epochs of each source."""

import dataclasses
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import batches, mixtures
from lm.data.mixtures import Mixture, Part
from lm.data.packed import synthetic
from lm.data.read.sources import DataError
from lm.distributed import sharding
from lm.models.config import ConfigError
from lm.tasks import Transform
from tests.lm.training import small


def rows(n, seed=0, length=4, documents=None):
    packed = synthetic(60_000, n, length, seed)
    return (
        packed
        if documents is None
        else dataclasses.replace(packed, document_bytes=np.full(documents, 9, np.int64))
    )


def counted(mixture, places):
    return np.bincount([mixture.at(p)[0] for p in places], minlength=len(mixture.parts))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=9).filter(any),
    st.integers(0, 5),
    st.integers(1, 400),
)
def test_proportions_drift_or_counts_of_a_source_skip(weights, seed, n):
    mixture = Mixture([Part(str(i), ROWS, float(w)) for i, w in enumerate(weights)], seed=seed)
    found = [mixture.at(place) for place in range(n)]
    for source, weight in enumerate(weights):
        own = [count for s, count in found if s == source]
        assert own == list(range(len(own))), (
            "a row of the source's stream is skipped or given twice"
        )
        assert abs(len(own) - n * Fraction(weight, sum(weights))) <= np.log2(len(weights)) + 1
        assert weight or not own


ROWS = rows(3)


def test_the_proportions_far_into_a_run_are_those_of_a_float():
    mixture = Mixture([Part("a", ROWS, 1.0), Part("b", ROWS, 2.0)])
    at = 10**12
    assert list(counted(mixture, range(at, at + 300))) == [100, 200]
    assert abs(mixture.at(at)[1] - at * (1 / 3 if mixture.at(at)[0] == 0 else 2 / 3)) < 2


def test_an_epoch_of_a_source_misses_a_row_or_the_next_has_its_order():
    a, b = rows(10, 1), rows(7, 2)
    mixture = Mixture([Part("a", a, 0.5), Part("b", b, 0.5)], seed=3)
    read = {0: [], 1: []}
    for place in range(60):
        source, _ = mixture.at(place)
        read[source].append(tuple(mixture[place]["tokens"]))
    for source, packed in enumerate((a, b)):
        n, every = len(packed), {tuple(row) for row in packed.tokens}
        assert set(read[source][:n]) == set(read[source][n : 2 * n]) == every
        assert read[source][:n] != read[source][n : 2 * n]


def test_rates_are_not_those_of_t5():
    sizes, limit, temperature = (100, 40, 10), 50, 2.0
    parts = [Part(str(n), rows(n), limit=limit) for n in sizes]
    limited = np.minimum(sizes, limit) / np.minimum(sizes, limit).sum()
    np.testing.assert_allclose(mixtures.rates(parts), limited)
    np.testing.assert_allclose(
        mixtures.rates(parts, temperature), limited**0.5 / (limited**0.5).sum()
    )
    np.testing.assert_allclose(mixtures.rates(parts, 1e9), [1 / 3] * 3, rtol=1e-6)
    packed = [Part("ten a row", rows(10, documents=100)), Part("one a row", rows(100))]
    np.testing.assert_allclose(mixtures.rates(packed), [10 / 110, 100 / 110])
    packed = [dataclasses.replace(part, limit=50) for part in packed]
    np.testing.assert_allclose(mixtures.rates(packed), [5 / 55, 50 / 55])


def stream(data, size=8, seed=0, shape=(1, 1, 1)):
    sharded = sharding.batch_sharding(small.mesh_of(*shape), (size, data.length))
    return batches.TrainBatches(data, size, seed, sharded)


def tokens(iterator, steps):
    return np.concatenate([np.asarray(next(iterator).tokens) for _ in range(steps)])


def test_replay_of_nothing_is_not_training_on_the_new_data_alone():
    new, old = rows(20, 1), rows(9, 2)
    given = mixtures.replay("new", "old", 0.0)
    mixture = Mixture(
        [Part("new", new, given["new"]["weight"]), Part("old", old, given["old"]["weight"])], seed=5
    )
    assert np.array_equal(tokens(stream(mixture, seed=5), 6), tokens(stream(new, seed=5), 6))
    given = mixtures.replay("new", "old", 0.25)
    mixture = Mixture(
        [Part("new", new, given["new"]["weight"]), Part("old", old, given["old"]["weight"])], seed=5
    )
    assert list(counted(mixture, range(80))) == [60, 20]
    with pytest.raises(ConfigError, match=r"share of 1.5"):
        mixtures.replay("new", "old", 1.5)


def test_a_batch_of_a_mixture_depends_on_the_mesh_or_on_where_the_run_was_interrupted():
    mixture = Mixture([Part("a", rows(10, 1), 3.0), Part("b", rows(7, 2), 1.0)], seed=1)
    whole = stream(mixture)
    expected = [np.asarray(next(whole).tokens) for _ in range(5)]
    for got, want in zip(
        (next(s := stream(mixture, shape=(2, 4, 1))), next(s)), expected, strict=False
    ):
        assert np.array_equal(np.asarray(jax.device_get(got.tokens)), want)
    first = stream(mixture)
    tokens(first, 3)
    second = stream(Mixture([Part("a", rows(10, 1), 3.0), Part("b", rows(7, 2), 1.0)], seed=1))
    second.restore(first.position())
    assert np.array_equal(tokens(second, 2), np.concatenate(expected[3:]))


def test_the_order_does_not_follow_the_seed():
    made = [
        Mixture([Part("a", rows(50, 1), 0.7), Part("b", rows(50, 2), 0.3)], seed=seed)
        for seed in (0, 0, 1)
    ]
    a, b, c = ([tuple(m[place]["tokens"]) for place in range(40)] for m in made)
    assert a == b != c


@pytest.mark.parametrize(
    ("weights", "limits", "temperature", "said"),
    [
        ((0.0, 0.0), (0, 0), 1.0, r"weights of data.mixture \(a, b\) sum to 0"),
        ((1.0, -0.5), (0, 0), 1.0, r"data.mixture.b.weight=-0.5"),
        ((1.0, float("nan")), (0, 0), 1.0, r"data.mixture.b.weight=nan"),
        ((1.0, None), (0, 0), 1.0, "data.mixture.b has no weight, and a has one"),
        ((None, None), (0, -1), 1.0, r"data.mixture.b.limit=-1"),
        ((1.0, 1.0), (5, 0), 1.0, r"data.mixture.a.limit=5"),
        ((None, None), (0, 0), 0.0, r"data.temperature=0"),
    ],
)
def test_rates_that_make_no_sense_are_taken(weights, limits, temperature, said):
    parts = [
        Part(name, ROWS, weight, limit)
        for name, weight, limit in zip("ab", weights, limits, strict=True)
    ]
    with pytest.raises(ConfigError, match=said):
        Mixture(parts, temperature)


def test_a_source_s_own_weights_or_length_are_lost_or_its_padding_counts():
    weighted = dataclasses.replace(
        rows(3, 1, length=8), extra={"weights": np.array([[0, 0, 1, 1, 0, 0, 1, 1]] * 3, np.uint8)}
    )
    mixture = Mixture([Part("text", ROWS, 1.0), Part("answers", weighted, 1.0)], seed=2)
    for place in range(6):
        row, text = mixture[place], mixture.at(place)[0] == 0
        assert list(row["weights"]) == (
            [1, 1, 1, 1, 0, 0, 0, 0] if text else [0, 0, 1, 1, 0, 0, 1, 1]
        )
        assert list(row["segments"]) == ([1, 1, 1, 1, 0, 0, 0, 0] if text else [1] * 8)
    assert mixture.lengths == batches.lengths_of(mixture) == (8, 0)


def test_each_source_is_read_by_another_task_than_its_own():
    """A source's transform draws what it draws at the same position in a single-source run."""
    draw = Transform(
        lambda row, rng, lengths: dict(row) | {"weights": rng.random(lengths[0]) < 0.5}
    )
    mixture = Mixture(
        [Part("text", ROWS, 1.0), Part("drawn", rows(9, 2), 1.0, transform=draw)], seed=7
    )
    for place in range(8):
        expected = (
            np.ones(4)
            if mixture.at(place)[0] == 0
            else np.random.default_rng((7, place)).random(4) < 0.5
        )
        assert list(mixture[place]["weights"]) == list(expected)


def test_sources_that_make_no_batch_are_mixed():
    read = dataclasses.replace(
        rows(3),
        extra={name: np.ones((3, 6), np.int32) for name in ("encoder_tokens", "encoder_segments")},
    )
    with pytest.raises(
        DataError, match=r"rows of 'b' are encoder_segments \[6\].*make no batch together"
    ):
        Mixture([Part("a", ROWS), Part("b", read)])


def test_counts_of_the_sources_are_not_added_up():
    mixture = Mixture([Part("a", rows(10), 1.0), Part("b", rows(30), 3.0)])
    stats = mixture.stats()
    assert (stats["rows"], stats["documents"], stats["length"], stats["filled"]) == (40, 40, 4, 1.0)
    assert (
        mixture.described()[0]
        == "a: 25.00% of the rows, 10 documents, 40 rows of the mixture an epoch"
    )
