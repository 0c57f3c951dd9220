"""Devices with rows of their own reduce each gradient once a step, after all micro-batches."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.distributed import sharding
from lm.losses import Loss, Term
from lm.losses.tokens import token_loss
from lm.training import optimizer
from lm.training.state import create_state
from lm.training.step import make_train_step
from tests.lm import collectives
from tests.lm.small_models import drawn
from tests.lm.training import small

TIED = small.MODEL.replace(tie_embeddings=True)
DROPOUT = small.MODEL.replace(dropout=0.2)


def collected(shape, config=small.MODEL, accumulate=1, reduce="step"):
    """What is communicated over the axes that split the batch, except scalars; and the state."""
    mesh = small.mesh_of(*shape)
    lowered, state, _ = small.lowered(shape, config, accumulate, reduce)
    found = collectives.of(lowered.compile().as_text())
    over = lambda one: collectives.axes(one, mesh) & {"data", "fsdp"}
    return [(one, over(one)) for one in found if one.shape and over(one)], state


def reductions_over(axis, found):
    return [one for one, axes in found if one.kind in collectives.REDUCTIONS and axis in axes]


def shapes_on_a_device(params):
    return collections.Counter(x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("shape", "config", "accumulate"),
    [
        ((8, 1, 1), TIED, 1),
        ((4, 2, 1), TIED, 2),
        pytest.param((8, 1, 1), TIED, 2, marks=pytest.mark.slow),
        pytest.param((4, 1, 1), small.MODEL, 4, marks=pytest.mark.slow),
        pytest.param((8, 1, 1), small.MODEL, 1, marks=pytest.mark.slow),
        pytest.param((1, 8, 1), small.MODEL, 2, marks=pytest.mark.slow),
        pytest.param((2, 4, 1), DROPOUT, 2, marks=pytest.mark.slow),
        pytest.param((4, 1, 2), TIED, 1, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), TIED, 2, marks=pytest.mark.slow),
    ],
)
def test_devices_communicate_in_a_loop_or_reduce_a_gradient_twice(shape, config, accumulate):
    found, state = collected(shape, config, accumulate)
    assert not [one for one, _ in found if one.loops]
    sizes = dict(zip(("data", "fsdp"), shape, strict=False))
    for axis in (axis for axis, size in sizes.items() if size > 1):
        reduced = collections.Counter(one.shape for one in reductions_over(axis, found))
        assert reduced == shapes_on_a_device(state.params)
    split = [x for x in jax.tree.leaves(state.params) if "fsdp" in str(x.sharding.spec)]
    gathered = [one for one, _ in found if one.kind == "all-gather"]
    assert len(gathered) == (len(split) if sizes["fsdp"] > 1 else 0)
    kept = jax.tree.map(lambda x: x.sharding.spec, (state.params, state.opt_state))
    assert ("fsdp" in str(kept)) == bool(split)  # nothing is kept whole


@pytest.mark.slow
def test_reductions_of_each_micro_batch_hold_whole_gradients():
    found, _ = collected((2, 4, 1), accumulate=2, reduce="micro_batch")
    assert any(one.loops for one in reductions_over("fsdp", found))
    sizes = [
        small.lowered((2, 4, 1), small.MODEL, 2, reduce)[0].compile().memory_analysis()
        for reduce in ("step", "micro_batch")
    ]
    assert sizes[0].temp_size_in_bytes > sizes[1].temp_size_in_bytes


def two_terms(model, params, batch, rng=None):
    """A term over tokens with metrics of both kinds, and one over rows with a weight of its own."""
    found = token_loss(model, params, batch, rng, chunk=4, z_loss=1e-2)
    out = model.apply({"params": params}, batch, method="hidden").hidden
    long = jnp.float32(jnp.sum(batch.segments > 0, 1) > 8)
    rows = Term(jnp.sum(jnp.mean(jnp.square(out), (1, 2)) * long), jnp.sum(long))
    share = Term(jnp.sum(long), jnp.float32(len(long)))
    return Loss({**found.terms, "rows": rows}, {**found.metrics, "share": share})


def one_step(shape, config, rates=((".", 1.0),), dropout_alone=False, reduce="step"):
    mesh, (model, _, schedule) = small.mesh_of(*shape), small.parts(config)
    adamw = optimizer.adamw(schedule, clip=0.0, rates=rates)
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 4, (16, 12)), axis=1)
    segments[np.arange(12) >= rng.integers(2, 13, (16, 1))] = 0
    rows = sharding.batch_sharding(mesh, segments.shape)
    batch = jax.device_put(Batch.of(rng.integers(0, 64, segments.shape), segments), rows)
    state = create_state(model, adamw, mesh, 0, params=drawn(model))
    shardings = jax.tree.map(lambda x: x.sharding, state.params)
    weights = lambda batch: {
        "loss": jnp.sum(batch.weights),
        "rows": jnp.sum(jnp.float32(jnp.sum(batch.segments > 0, 1) > 8)),
    }
    terms = {} if dropout_alone else dict(weights=weights, coefficients={"rows": 0.5})
    step = make_train_step(
        model,
        token_loss if dropout_alone else two_terms,
        adamw,
        schedule,
        accumulate=2,
        shardings=shardings,
        rates=rates,
        reduce=reduce,
        **terms,
    )
    with sharding.checked(mesh):
        state, metrics = jax.jit(step)(state, batch)
    return jax.device_get((state.params, metrics))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 1, 1), dict(rates=(("embeddings", 0.0), (".", 1.0)))),
        ((4, 2, 1), dict(dropout_alone=True)),
        pytest.param((1, 8, 1), {}, marks=pytest.mark.slow),
        pytest.param((2, 4, 1), dict(reduce="micro_batch"), marks=pytest.mark.slow),
        pytest.param((2, 2, 2), dict(dropout_alone=True), marks=pytest.mark.slow),
    ],
)
def test_replicas_with_micro_batches_differ_from_one_device(shape, options):
    """With several terms and packed rows, or with the same draws of dropout."""
    dropout = 0.2 if options.get("dropout_alone") else 0.0
    config = small.MODEL.replace(n_layers=1, dropout=dropout)
    one, every = (one_step(each, config, **options) for each in ((1, 1, 1), shape))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), every, one)
