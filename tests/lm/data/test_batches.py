"""The global batch depends on seed and step only; positions restart with each document."""

import dataclasses
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.batch import FIELDS, Batch
from lm.data import batches
from lm.data.encode import plain_text
from lm.data.packed import synthetic
from lm.distributed import sharding
from lm.losses import Loss
from lm.losses.tokens import token_loss
from lm.models import build
from lm.models.config import ConfigError
from lm.training.state import create_state
from lm.training.step import make_train_step
from tests.lm.small_models import drawn
from tests.lm.training import small


def train_batches(packed, shape=(1, 1, 1), size=8, seed=0):
    rows = sharding.batch_sharding(small.mesh_of(*shape), (size, packed.length))
    return batches.TrainBatches(packed, size, seed, rows)


PACKED = synthetic(60_000, 20, 4)


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
            held.append(batches.local_rows(rows, (8, 4)))
    assert [list(h) for h in held] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_restored_iterator_does_not_continue():
    whole = tokens(train_batches(PACKED), 9)
    first = train_batches(PACKED)
    tokens(first, 4)
    state = first.position()
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
        second.restore(first.position())
        assert np.array_equal(np.concatenate(tokens(second, 24 // size)), rows[12:36])
        assert second.position() == {"rows": 36}
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
    packed = plain_text.pack([(ids, 1) for ids in documents], 16)
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
    params = drawn(model)
    run = jax.jit(jax.value_and_grad(lambda p, b: token_loss(model, p, b).first.sum))
    (a, a_gradient), (b, b_gradient) = run(params, together), run(params, apart)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a_gradient, b_gradient
    )


def test_the_declared_fields_are_not_those_of_a_batch():
    """Except for `more`, which holds those that a user's task declares."""
    declared = runpy.run_path(lm.batch.__file__)["FIELDS"]  # without those of tasks of other tests
    assert [*declared, "more"] == [field.name for field in dataclasses.fields(Batch)]
    assert list(FIELDS)[: len(declared)] == list(declared)


def test_a_value_that_a_field_can_hold_is_changed():
    for name, values in (
        ("labels", np.array([-0.7, 0.0, 3e38])),  # float64
        ("labels", np.array([True, False])),
        ("labels", np.array([2**24, -3])),
        ("labels", np.array([np.nan, np.inf, -np.inf])),
        ("weights", np.array([0.5], np.float16)),
        ("tokens", np.array([2**31 - 1, -(2**31)])),
        ("tokens", np.array([7], np.uint8)),
        ("tokens", np.array([2.0, -3.0])),
    ):
        found = batches.cast(name, values)
        assert found.dtype == FIELDS[name].dtype
        np.testing.assert_array_equal(found, values.astype(found.dtype))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("tokens", np.array([1.0, -0.7]), r"'tokens' is declared as int32.*such as -0.7 \(float64"),
        ("tokens", np.array([2**31]), "such as 2147483648"),
        ("tokens", np.array([np.nan]), "such as nan"),
        ("segments", np.array(["a"]), "such as 'a'"),
        ("targets", np.array([1j]), "int32.*complex"),
        ("labels", np.array([2**24 + 1]), "float32.*such as 16777217"),
        ("weights", np.array([1e39, 1.0]), r"float32.*such as 1e\+39 \("),
    ],
)
def test_a_lossy_cast_passes(name, values, said):
    with pytest.raises(ConfigError, match=said):
        batches.stacked([{name: values}])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"token": [1]}], "the field 'token' .did you mean 'tokens'.*does not declare"),
        ([{"tokens": [1]}, {"segments": [1]}], r"'segments' has the shapes \(1,\) in 1 of 2 rows"),
        (
            [{"tokens": [1]}, {"tokens": [1, 2]}],
            r"'tokens' has the shapes \(1,\), \(2,\) in 2 of 2",
        ),
        ([{"tokens": 1}], r"'tokens' of a row has shape \(\): expected the axes"),
        ([{"tokens": [[[1]]]}], r"'tokens' of a row has shape \(1, 1, 1\)"),
    ],
)
def test_rows_that_are_no_batch_are_stacked(rows, said):
    with pytest.raises(ConfigError, match=said):
        batches.stacked(rows)


class Pairs:
    """A stream of two texts a row, of which the first is to become more likely than the second."""

    lengths = (6, 0)

    def __getitem__(self, place):
        tokens = np.random.default_rng(place).integers(1, 60, (2, 6))
        return {"tokens": tokens, "targets": tokens, "segments": tokens > 0, "weights": tokens > 0}


def preference(model, params, batch, rng=None):
    """-log sigmoid of the difference of log-likelihoods, summed over pairs."""
    rows = batch.ungrouped()
    logits = lm.forward(model, params, rows).logits[:, :-1]
    of = jax.nn.log_softmax(logits)
    said = jnp.take_along_axis(of, rows.tokens[:, 1:, None], axis=-1)[..., 0].sum(-1)
    chosen, rejected = said.reshape(-1, 2).T
    return Loss.of(-jax.nn.log_sigmoid(chosen - rejected).sum(), jnp.float32(len(chosen)))


def test_a_group_is_split_by_micro_batches_or_devices():
    model, adamw, schedule = small.parts(small.MODEL.replace(n_layers=1))
    found = []
    for shape, accumulate in (((1, 1, 1), 1), ((1, 1, 1), 4), ((2, 2, 2), 2)):
        mesh = small.mesh_of(*shape)
        rows = sharding.batch_sharding(mesh, (8, 6))
        batch = next(batches.TrainBatches(Pairs(), 8, 0, rows))
        assert batch.tokens.shape == (8, 2, 6) and batch.positions[3, 1].tolist() == [*range(6)]
        with sharding.activate(mesh):
            step = jax.jit(
                make_train_step(model, preference, adamw, schedule, accumulate=accumulate)
            )
            state, metrics = step(create_state(model, adamw, mesh, 0), batch)
        found.append(jax.device_get((metrics, state.params)))
    assert found[0][0]["loss"] == pytest.approx(np.log(2), abs=0.5) and found[0][0]["weight"] == 8
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other, found[0])
