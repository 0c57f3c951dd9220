"""The global batch depends on seed and step only; positions restart with each document."""

import jax
import numpy as np
import pytest

from lm.batch import Batch
from lm.data import batches, packing
from lm.distributed import sharding
from lm.models import build
from lm.objectives import next_token
from tests.lm.training import small


def train_batches(packed, shape=(1, 1, 1), size=8, seed=0):
    rows = sharding.batch_sharding(small.mesh_of(*shape), (size, packed.length))
    return batches.TrainBatches(packed, size, seed, rows)


PACKED = packing.synthetic(60_000, 20, 4)


def tokens(iterator, steps):
    return [np.asarray(next(iterator).tokens) for _ in range(steps)]


def test_an_epoch_misses_a_row_or_repeats_one():
    stream = np.concatenate(tokens(train_batches(PACKED), 10))
    for epoch in range(4):
        rows = {tuple(row) for row in stream[epoch * 20 : epoch * 20 + 20]}
        assert rows == {tuple(row) for row in PACKED.tokens}
    assert not np.array_equal(stream[:20], stream[20:40]), "every epoch has the same order"


def test_the_order_does_not_follow_the_seed():
    a, b, c = (np.concatenate(tokens(train_batches(PACKED, seed=seed), 2)) for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_batches_depend_on_the_mesh():
    for a, b in zip(
        tokens(train_batches(PACKED), 3), tokens(train_batches(PACKED, (2, 4, 1)), 3), strict=True
    ):
        assert np.array_equal(a, b)


def test_hosts_together_do_not_read_the_batch_of_one_host(monkeypatch):
    """Two halves of the devices stand in for two processes."""
    mesh = small.mesh_of(8, 1, 1)
    rows = sharding.batch_sharding(mesh, (8, 4))
    every = rows.addressable_devices_indices_map((8, 4))
    halves = [dict(list(every.items())[:4]), dict(list(every.items())[4:])]
    held = []
    for half in halves:
        with monkeypatch.context() as m:
            m.setattr(type(rows), "addressable_devices_indices_map", lambda self, shape, h=half: h)
            held.append(batches._local_rows(rows, (8, 4)))
    assert [list(h) for h in held] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_restored_iterator_does_not_continue():
    whole = tokens(train_batches(PACKED), 9)
    first = train_batches(PACKED)
    tokens(first, 4)
    state = first.state()
    tokens(first, 2)  # prefetched after the checkpoint
    second = train_batches(PACKED)
    second.restore(state)
    for a, b in zip(whole[4:], tokens(second, 5), strict=True):
        assert np.array_equal(a, b)


def test_another_batch_size_skips_or_repeats_rows():
    rows = np.concatenate(tokens(train_batches(PACKED, size=8), 6))  # more than two epochs
    first = train_batches(PACKED, size=4)
    tokens(first, 3)
    for size in (8, 2, 4):
        second = train_batches(PACKED, size=size)
        second.restore(first.state())
        assert np.array_equal(np.concatenate(tokens(second, 24 // size)), rows[12:36])
        assert second.state() == {"rows": 36}
    old = train_batches(PACKED, size=4)
    old.restore({"next_index": 3})  # the format of earlier versions
    assert np.array_equal(tokens(old, 1)[0], rows[12:16])


def test_positions_do_not_restart_with_a_document():
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 4]])
    expected = [[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 0]]
    assert batches.positions_of(segments).tolist() == expected


def test_rows_in_order_are_dropped_doubled_or_the_filling_is_counted():
    rows = sharding.batch_sharding(small.mesh_of(1, 1, 1), (8, 4))
    read = list(batches.in_order(PACKED, 8, rows))
    numbers = np.concatenate([n for n, _ in read])
    assert list(numbers[numbers >= 0]) == list(range(20))
    assert all(np.asarray(b.weights)[n < 0].sum() == 0 for n, b in read)
    stream = np.concatenate([np.asarray(b.tokens)[n >= 0] for n, b in read])
    assert np.array_equal(stream, PACKED.tokens)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_packed_documents_see_each_other(positions):
    model = build(small.MODEL.replace(n_layers=1, positions=positions))
    random = np.random.default_rng(0)
    documents = [random.integers(0, 64, n).astype(np.int32) for n in (9, 5, 4, 12, 2)]
    packed = packing.pack([(ids, 1) for ids in documents], 16)
    assert len(packed) < len(documents)
    together = Batch.of(
        packed.tokens, packed.segments, targets=packed.targets, weights=packed.segments > 0
    )
    alone = np.zeros((5, 16), np.int32)
    segments = np.zeros((5, 16), np.int32)
    targets = np.zeros((5, 16), np.int32)
    for row, ids in enumerate(documents):
        n = len(ids) - 1
        alone[row, :n], targets[row, :n], segments[row, :n] = ids[:-1], ids[1:], 1
    apart = Batch.of(alone, segments, targets=targets, weights=segments > 0)
    params = jax.jit(lambda: model.init(jax.random.key(0), together)["params"])()
    run = jax.jit(jax.value_and_grad(lambda p, b: next_token(model, p, b).sum))
    (a, a_gradient), (b, b_gradient) = run(params, together), run(params, apart)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a_gradient, b_gradient
    )
