"""The chunked loss equals the plain loss in value and gradient, without holding all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.batch import Batch
from lm.losses import cross_entropy
from lm.losses.tokens import token_loss, token_losses
from lm.models import build
from tests.lm.small_models import drawn
from tests.lm.training.small import MODEL

TOKENS = np.random.default_rng(0).integers(0, 71, (2, 13))
CONFIG = MODEL.replace(vocab_size=71, n_layers=1)


def setup(tied=False):
    model = build(CONFIG.replace(tie_embeddings=tied))
    segments = np.ones_like(TOKENS)
    segments[1, 9:] = 0
    batch = Batch.of(TOKENS, segments)
    return model, drawn(model), batch


def plain(model, params, batch):
    logits = model.apply({"params": params}, batch).logits
    return jnp.sum(
        optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets) * batch.weights
    )


@pytest.mark.parametrize("tied", [True, False])
def test_chunked_loss_or_gradient_differs_from_the_plain_one(tied):
    model, params, batch = setup(tied)
    theirs, theirs_gradient = jax.jit(jax.value_and_grad(lambda p: 3.0 * plain(model, p, batch)))(
        params
    )
    for chunk in (5, 64) if tied else (1,):
        ours, ours_gradient = jax.jit(
            jax.value_and_grad(
                lambda p, c=chunk: 3.0 * token_loss(model, p, batch, chunk=c).first.sum
            )
        )(params)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
            ours_gradient,
            theirs_gradient,
        )


def test_all_logits_exist_at_one_time():
    model, params, batch = setup()
    b, t, v = 2, 13, 71

    def shapes(chunk):
        step = jax.make_jaxpr(
            jax.value_and_grad(lambda p: token_loss(model, p, batch, chunk=chunk).first.sum)
        )(params)
        found = {
            tuple(x.aval.shape)
            for eqn in equations(step.jaxpr)
            for x in eqn.outvars
            if hasattr(x.aval, "shape")
        }
        return found - {(v, 32)}  # the embedding table

    assert (b, 5, v) in shapes(5), "the logits of a chunk are not where this test looks for them"
    assert not {s for s in shapes(5) if v in s and np.prod(s) >= b * t * v}
    assert not {s for s in shapes(0) if v in s and np.prod(s) >= b * t * v}, (
        "the default holds all logits"
    )


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_loss_of_single_tokens_is_wrong():
    model, params, batch = setup()
    losses = token_losses(model, params, batch, chunk=4)
    assert losses.shape == batch.tokens.shape
    np.testing.assert_allclose(
        jnp.sum(losses * batch.weights), plain(model, params, batch), rtol=1e-6
    )


def test_a_huge_logit_overflows():
    logits = jnp.array([[1e30, 0.0, -1e30]])
    np.testing.assert_allclose(cross_entropy.token_losses(logits, jnp.array([0])), [0.0])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_not_controlled_by_the_rng(dropout):
    _, params, batch = setup()
    model = build(CONFIG.replace(dropout=dropout))
    run = jax.jit(lambda key: token_loss(model, params, batch, key).first.sum)
    loss = lambda seed: float(run(jax.random.key(seed)))
    assert (loss(1) == loss(2)) == (dropout == 0.0)
    assert loss(1) == loss(1)
