"""Rotation before quantisation: its effect on vectors, when it is skipped, ScaNN's code widths."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from retrieval import ScannIndex
from retrieval.index import rotation, scann_searcher
from retrieval.index.rotation import (
    REFLECTIONS,
    WHOLE,
    product,
    reflections,
    turn_of,
    turned,
    widths_for,
)
from retrieval.index.scann_config import with_widths
from retrieval.index.tuning import Tuning


def uneven(rng, count=3000, dim=64):
    """Vectors whose variance is mostly in a few directions, none of them an axis."""
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    rows = (rng.normal(size=(count, dim)) * 0.9 ** np.arange(dim)) @ axes.T
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_turn_changes_no_cosine_and_sorts_directions_by_variance(rng):
    vectors = uneven(rng)
    turn, widths = turn_of(vectors)
    rows = vectors @ turn
    np.testing.assert_allclose(rows[:50] @ rows.T, vectors[:50] @ vectors.T, atol=2e-6)
    assert (np.diff(rows.var(axis=0)) < 1e-6).all()
    assert (
        sum(codes * width for codes, width in widths) == 64
        and sum(codes for codes, _ in widths) < 0.8 * 32
    )
    assert [width for _, width in widths][:2] == [2, 4]


def test_vectors_of_many_dimensions_are_turned_to_the_first_directions_alone(rng):
    vectors = uneven(rng, dim=WHOLE + 8)
    turn, widths = turn_of(vectors)
    assert (
        turn.shape == (2, REFLECTIONS, WHOLE + 8)
        and sum(codes * width for codes, width in widths) == WHOLE + 8
    )
    rows = turned(vectors, turn)
    np.testing.assert_allclose(rows[:50] @ rows.T, vectors[:50] @ vectors.T, atol=5e-6)
    np.testing.assert_allclose(turned(rows, turn, back=True), vectors, atol=2e-6)
    np.testing.assert_allclose([turned(row, turn) for row in vectors[:5]], rows[:5], atol=2e-6)
    variances = np.linalg.eigvalsh(np.cov(vectors, rowvar=False))[::-1]
    np.testing.assert_allclose(
        rows[:, :REFLECTIONS].var(axis=0), variances[:REFLECTIONS], rtol=0.02
    )
    index = ScannIndex.build(
        vectors, [str(row) for row in range(len(vectors))], Tuning(kind="quantised")
    )
    assert index.search(vectors[::100], 1)[0] == [[str(row)] for row in range(0, len(vectors), 100)]


@pytest.mark.parametrize("dim, count", [(2, 1), (5, 5), (40, 7)])
def test_reflections_turn_to_the_directions_they_were_made_from(dim, count, rng):
    directions = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:, :count]
    there = turned(directions.T.astype(np.float32), reflections(directions))
    np.testing.assert_allclose(np.abs(there), np.eye(count, dim), atol=1e-6)


def test_vectors_that_vary_alike_in_all_directions_are_not_turned(rng):
    assert turn_of(rng.normal(size=(3000, 64)).astype(np.float32)) == (None, [])


@pytest.mark.parametrize("dim", [1, 2, 3, 17, 64, 577])
def test_every_dimension_has_a_code(dim):
    for variances in (np.ones(dim), 0.5 ** np.arange(dim), np.arange(dim, 0, -1.0) ** 3):
        assert sum(codes * width for codes, width in widths_for(variances)) == dim


@pytest.mark.parametrize("tree", [False, True])
def test_scann_takes_the_widths_and_finds_with_fewer_codes(tree, rng):
    scann = pytest.importorskip("scann.scann_ops.py.scann_ops_pybind")
    vectors = uneven(rng)
    turn, widths = turn_of(vectors)
    rows = vectors @ turn
    builder = scann.builder(rows, 10, "dot_product")
    builder = (
        (builder.tree(30, 30) if tree else builder)
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(100)
    )
    config = with_widths(builder.create_config(), widths)
    assert config.count("variable_blocks") == len(widths)
    searcher = scann.create_searcher(rows, config, 1)
    found, _ = searcher.search_batched(rows[:100], 10)
    best = np.argsort(-(vectors[:100] @ vectors.T), axis=1)[:, :10]
    assert (
        np.mean(
            [
                len(set(row) & set(true)) / 10
                for row, true in zip(found.tolist(), best.tolist(), strict=True)
            ]
        )
        > 0.95
    )


@pytest.mark.parametrize("kind", ["quantised", "partitioned"])
def test_a_rotated_index_returns_the_cosines_of_the_given_vectors(kind, rng, tmp_path, monkeypatch):
    pytest.importorskip("scann")
    monkeypatch.setattr(scann_searcher, "is_core", lambda: False)
    vectors = uneven(rng)
    ids = [str(row) for row in range(len(vectors))]
    index = ScannIndex.build(vectors[:2500], ids[:2500], Tuning(kind=kind))
    index.save(tmp_path / "index")
    assert list((tmp_path / "index").rglob("turn.npy"))
    for one in (index, ScannIndex.load(tmp_path / "index")[0]):
        one.upsert(vectors[2500:], ids[2500:])
        one.upsert(-vectors[:1000], ids[:1000])
        one.delete(ids[1000:1300])
        one.wait()  # half of the rows have changed
        assert one.health()["changed"] == 0
        for sign, rows in ((-1, range(0, 1000, 50)), (1, range(1300, 3000, 50))):
            found, scores = one.search(sign * vectors[list(rows)], 1)
            assert found == [[str(row)] for row in rows]
            np.testing.assert_allclose(np.concatenate(scores), 1, atol=1e-5)


def test_one_query_is_turned_as_a_row_of_many(rng):
    turn, rows = (
        np.linalg.qr(rng.normal(size=(48, 48)))[0].astype(np.float32),
        rng.normal(size=(3, 48)).astype(np.float32),
    )
    for way in (turn, np.asfortranarray(turn), reflections(turn[:, :8].astype(np.float64))):
        np.testing.assert_allclose([turned(row, way) for row in rows], turned(rows, way), atol=1e-5)
        np.testing.assert_allclose(
            [turned(row, way, back=True) for row in rows], turned(rows, way, back=True), atol=1e-5
        )


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_a_turn_takes_one_thread_of_blas_and_leaves_it_as_many_as_it_had(rng):
    class Rows:
        ndim = 2

        def __matmul__(self, turn):
            seen.append(blas_threads())

    rotation._blas.cache_clear()  # libraries loaded since have a BLAS that is not used here
    before, seen, turn = blas_threads(), [], np.eye(64, dtype=np.float32)
    product(Rows(), turn)
    assert seen == [[1] * len(before)]
    rows = rng.normal(size=(500, 64)).astype(np.float32)
    threads = [
        threading.Thread(target=lambda: [turned(rows, turn) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(turned(rows, turn), rows)
    assert blas_threads() == before
