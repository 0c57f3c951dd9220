"""Replicas of a model reduce each gradient once a step, after all micro-batches."""

import collections
import math

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


def reductions(shape, config=small.MODEL, accumulate=1):
    """Reductions over replicas of arrays other than scalars, and the parameters of one device."""
    mesh = small.mesh_of(*shape)
    lowered, state, _ = small.lowered(shape, config, accumulate)
    found = collectives.of(lowered.compile().as_text())
    over = [c for c in found if c.shape and "data" in collectives.axes(c, mesh)]
    assert {c.kind for c in over} <= set(collectives.REDUCTIONS)
    params = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), state.params)
    return over, jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize(
    ("shape", "config", "accumulate"),
    [
        ((8, 1, 1), TIED, 2),
        pytest.param((4, 1, 1), small.MODEL, 4, marks=pytest.mark.slow),
    ],
)
def test_replicas_reduce_between_micro_batches_or_a_gradient_twice(shape, config, accumulate):
    over, params = reductions(shape, config, accumulate)
    assert not [each for each in over if each.loops]
    assert collections.Counter(each.shape for each in over) == collections.Counter(params)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "uses"), [(small.MODEL, 1), (TIED, 2)])
def test_without_micro_batches_a_gradient_is_reduced_more_often_than_its_uses(config, uses):
    over, params = reductions((8, 1, 1), config)
    table = config.vocab_size * config.d_model  # tied, it is used twice: as input and as output
    expected = sum(map(math.prod, params)) + (uses - 1) * table
    assert sum(each.times * math.prod(each.shape) for each in over) == expected
    assert all(each.loops == 1 for each in over if each.loops)  # the loop over layers


def two_terms(model, params, batch, rng=None):
    """A term over tokens with metrics of both kinds, and one over rows with a weight of its own."""
    found = token_loss(model, params, batch, rng, chunk=4, z_loss=1e-2)
    out = model.apply({"params": params}, batch, method="hidden").hidden
    long = jnp.float32(jnp.sum(batch.segments > 0, 1) > 8)
    rows = Term(jnp.sum(jnp.mean(jnp.square(out), (1, 2)) * long), jnp.sum(long))
    share = Term(jnp.sum(long), jnp.float32(len(long)))
    return Loss({**found.terms, "rows": rows}, {**found.metrics, "share": share})


def one_step(shape, config, rates=((".", 1.0),), dropout_alone=False):
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
        **terms,
    )
    with sharding.checked(mesh):
        state, metrics = jax.jit(step)(state, batch)
    return jax.device_get((state.params, metrics))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 1, 1), dict(rates=(("embeddings", 0.0), (".", 1.0)))),
        pytest.param((4, 2, 1), {}, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), dict(dropout_alone=True), marks=pytest.mark.slow),
    ],
)
def test_replicas_with_micro_batches_differ_from_one_device(shape, options):
    """With several terms and packed rows, or with the same draws of dropout."""
    dropout = 0.2 if options.get("dropout_alone") else 0.0
    config = small.MODEL.replace(n_layers=1, dropout=dropout)
    one, every = (one_step(each, config, **options) for each in ((1, 1, 1), shape))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), every, one)
