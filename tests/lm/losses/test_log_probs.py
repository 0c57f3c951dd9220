"""Log-probabilities, entropies and divergences equal float64 formulas, without [B, T, V]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import cross_entropy, divergence
from lm.losses.log_probs import log_probs

B, T, D, E, V, K, CHUNK = 2, 7, 6, 4, 11, 3, 3
RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.normal(size=(B, T, D)), RNG.normal(size=(V, D))
THEIRS, THEIR_HEAD = RNG.normal(size=(B, T, E)), RNG.normal(size=(V, E))
TARGETS, WEIGHTS = RNG.integers(0, V, (B, T)), RNG.integers(0, 2, (B, T)).astype(np.float64)
UP, DOWN = RNG.normal(size=(2, B, T))  # gradients of the two results


def logits(head, hidden):
    return jnp.einsum("...d,vd->...v", hidden, head.astype(jnp.float32))


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def numerical(function, *arrays, step=1e-6):
    """Central differences of a float64 scalar, for every element of the arrays."""
    found = []
    for number, array in enumerate(arrays):
        gradient = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            moved = [[x.copy() for x in arrays] for _ in range(2)]
            moved[0][number][at] += step
            moved[1][number][at] -= step
            gradient[at] = (function(*moved[0]) - function(*moved[1])) / (2 * step)
        found.append(gradient)
    return found


def compared(ours, exact):
    """Value and gradients in `HEAD` and `HIDDEN` of float32 JAX and float64 NumPy functions."""
    arrays = jnp.float32(HEAD), jnp.float32(HIDDEN)
    value, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(*arrays)
    np.testing.assert_allclose(value, exact(HEAD, HIDDEN), rtol=2e-5)
    for mine, theirs in zip(gradients, numerical(exact, HEAD, HIDDEN), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_log_probabilities_and_entropies_differ_from_the_formulas(temperature):
    def exact(head, hidden):
        found = log_softmax(hidden @ head.T / temperature)
        of_targets = np.take_along_axis(found, TARGETS[..., None], -1)[..., 0]
        return np.sum(UP * of_targets) + np.sum(DOWN * -(np.exp(found) * found).sum(-1))

    def ours(head, hidden):
        of_targets, entropy = log_probs(logits, head, hidden, TARGETS, CHUNK, temperature)
        return jnp.sum(UP * of_targets) + jnp.sum(DOWN * entropy)

    compared(ours, exact)


def test_cross_entropy_of_every_position_has_another_gradient():
    def exact(head, hidden):
        found = log_softmax(hidden @ head.T)
        return -np.sum(UP * np.take_along_axis(found, TARGETS[..., None], -1)[..., 0])

    def ours(head, hidden):
        return jnp.sum(UP * cross_entropy.per_token(logits, head, hidden, TARGETS, CHUNK))

    compared(ours, exact)


@pytest.mark.parametrize(
    ("direction", "temperature"), [("forward", 1.0), ("forward", 2.5), ("reverse", 2.5)]
)
def test_a_divergence_differs_from_the_formula(direction, temperature):
    theirs = log_softmax(THEIRS @ THEIR_HEAD.T / temperature)

    def exact(head, hidden):
        mine = log_softmax(hidden @ head.T / temperature)
        p, q = (theirs, mine) if direction == "forward" else (mine, theirs)
        return np.sum(WEIGHTS * (np.exp(p) * (p - q)).sum(-1))

    base = (logits, jnp.float32(THEIR_HEAD), jnp.float32(THEIRS))

    def ours(head, hidden):
        options = (WEIGHTS, CHUNK, direction, temperature)
        return divergence.summed(logits, head, hidden, *base, *options)

    compared(ours, exact)


def test_a_top_k_divergence_differs_from_that_of_k_columns_and_the_rest():
    theirs = log_softmax(THEIRS @ THEIR_HEAD.T / 2.0)
    indices = np.argsort(-theirs, -1)[..., :K]
    stored = np.take_along_axis(theirs, indices, -1)

    def exact(head, hidden):
        mine = np.take_along_axis(log_softmax(hidden @ head.T / 2.0), indices, -1)
        p, q = (
            np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in np.exp((stored, mine))
        )
        return np.sum(WEIGHTS * (p * np.log(p / q)).sum(-1))

    rest = np.log(1 - np.exp(stored).sum(-1))
    teacher = divergence.top(jnp.float32(THEIRS @ THEIR_HEAD.T / 2.0), K)
    for found, wanted in zip(teacher, (indices, stored, rest), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)

    def ours(head, hidden):
        return divergence.summed_top_k(logits, head, hidden, *teacher, WEIGHTS, CHUNK, 2.0)

    def live(head, hidden):
        base = logits, jnp.float32(THEIR_HEAD), jnp.float32(THEIRS)
        options = dict(temperature=2.0, top_k=K)
        return divergence.summed(logits, head, hidden, *base, WEIGHTS, CHUNK, **options)

    compared(ours, exact)
    compared(live, exact)
    whole = divergence.divergence(jnp.float32(HIDDEN @ HEAD.T), jnp.float32(theirs), "forward")
    part = divergence.top_k_divergence(jnp.float32(HIDDEN @ HEAD.T), *teacher)
    assert (part <= whole + 1e-6).all()


def test_a_head_in_bfloat16_has_its_gradient_summed_in_bfloat16():
    rng, length = np.random.default_rng(1), 256
    hidden = jnp.float32(1 + 0.01 * rng.normal(size=(1, length, D)))
    head, targets = jnp.bfloat16(HEAD), np.zeros((1, length), np.int32)

    def gradient(chunk):
        return jax.grad(lambda h: log_probs(logits, h, hidden, targets, chunk)[0].sum())(head)

    np.testing.assert_allclose(
        np.float32(gradient(1)), np.float32(gradient(length)), rtol=2**-7, atol=1e-3
    )


@functools.cache
def compiled(name):
    """The gradient of a loss at [4, 512, 8192] logits in chunks of 64: (MiB, HLO text)."""
    b, t, d, v, chunk = 4, 512, 16, 8192, 64
    targets, weights = jnp.zeros((b, t), jnp.int32), jnp.ones((b, t))
    losses = {
        "summed": lambda h, x: cross_entropy.summed(logits, h, x, targets, weights, chunk)[0],
        "per_token": lambda h, x: jnp.sum(cross_entropy.per_token(logits, h, x, targets, chunk)),
        "log_probs": lambda h, x: jnp.sum(
            jnp.stack(log_probs(logits, h, x, targets, chunk, 0.9)) * jnp.float32([[[1]], [[0.1]]])
        ),
    }
    arrays = jnp.zeros((v, d)), jnp.zeros((b, t, d))
    found = jax.jit(jax.grad(losses[name], argnums=(0, 1))).lower(*arrays).compile()
    return found.memory_analysis().temp_size_in_bytes / 2**20, found.as_text()


@pytest.mark.parametrize("name", ["per_token", "log_probs"])
def test_the_gradient_keeps_the_logits_of_all_chunks(name):
    mib, text = compiled(name)
    assert mib <= 1.2 * compiled("summed")[0]
    assert "f32[4,64,8192]" in text, "the logits of a chunk are not where this test looks for them"
    for whole in ("f32[4,512,8192]", "f32[8,4,64,8192]", "f32[8,256,8192]", "f32[2048,8192]"):
        assert whole not in text
