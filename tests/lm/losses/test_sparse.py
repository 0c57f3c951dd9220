"""A loss whose weights are mostly 0 computes logits only where there are weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import cross_entropy
from lm.losses.cross_entropy import Extra

B, T, D, V = 3, 64, 8, 11
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, V, (B, T)))
HEAD = {"table": jnp.asarray(RNG.normal(size=(V, D)), jnp.float32)}
FEW = np.where(RNG.random((B, T)) < 0.15, RNG.random((B, T)) + 0.5, 0)
FEW[2] = 0
WEIGHTS = {
    "few": FEW,
    "none": np.zeros((B, T)),
    "all": np.ones((B, T)),
    "the last": np.eye(1, T, T - 1) * np.ones((B, 1)),
}


def found(sparse, extra, weights, counted=None):
    def logits(head, x):
        if counted is not None:
            jax.debug.callback(lambda: counted.append(1))
        return jnp.einsum("btd,vd->btv", x, head["table"])

    def loss(head, hidden, weights):
        total, plain = cross_entropy.summed(
            logits, head, hidden, TARGETS, weights, 32, extra, sparse
        )
        return total, plain

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    return step(HEAD, HIDDEN, jnp.asarray(weights, jnp.float32))


@pytest.mark.parametrize("extra", [Extra(), Extra(0.1, 1e-2)], ids=["plain", "extra"])
def test_the_loss_and_its_gradients_are_those_of_all_positions(extra):
    for name, weights in WEIGHTS.items():
        own, expected = (found(sparse, extra, weights) for sparse in (True, False))
        for a, b in zip(*map(jax.tree.leaves, (own, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)


def test_logits_are_computed_for_chunks_with_weights_alone():
    for name, at_most in (("few", 5), ("none", 0), ("all", 16), ("the last", 1)):
        counted = []
        jax.block_until_ready(found(True, Extra(), WEIGHTS[name], counted))
        jax.effects_barrier()
        assert len(counted) <= at_most, name
        assert bool(counted) == bool(WEIGHTS[name].any())
