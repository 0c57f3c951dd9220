"""Kullback-Leibler divergences between the predictions of two models, without [B, T, V]."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.losses import chunks
from lm.losses.chunks import Logits

DIRECTIONS = ("forward", "reverse")


def divergence(logits: jax.Array, base: jax.Array, direction: str) -> jax.Array:
    """KL(base || model) if "forward", KL(model || base) if "reverse", in nats.

    Maps two arrays [..., V] to [...].
    """
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(base)
    return (
        jnp.sum(jnp.exp(q) * (q - p), axis=-1)
        if direction == "forward"
        else jnp.sum(jnp.exp(p) * (p - q), axis=-1)
    )


def top(logits: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k < V most probable columns of logits [..., V], as `top_k_divergence` takes them.

    (indices int32 [..., K], log-probabilities float32 [..., K], log-probability float32 [...] of
    all other columns together).
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    found, indices = jax.lax.top_k(logits, k)
    others = jnp.put_along_axis(logits, indices, -jnp.inf, axis=-1, inplace=False)
    return indices, found - log_z[..., None], jax.nn.logsumexp(others, axis=-1) - log_z


def top_k_divergence(
    logits: jax.Array, indices: jax.Array, log_probs: jax.Array, log_rest: jax.Array
) -> jax.Array:
    """KL(teacher || model) of K stored columns and one class of all others, in nats, [...].

    logits [..., V]; of the teacher, from `top`: indices int32 and log_probs float32 [..., K], its
    most probable columns, and log_rest float32 [...]. The other V - K columns count as one class
    with the rest of the mass, for both models. By the log sum inequality (Cover & Thomas 2006,
    theorem 2.7.1) this is at most the full divergence. Unlike renormalised top-k probabilities
    (biased: Anshumann et al. 2025, arXiv 2503.16870), it is 0 for a model that gives each stored
    column the teacher's own probability.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    own = jnp.take_along_axis(logits, indices, axis=-1) - log_z[..., None]
    others = jnp.put_along_axis(logits, indices, -jnp.inf, axis=-1, inplace=False)
    own_rest = jax.nn.logsumexp(others, axis=-1) - log_z
    rest = jnp.exp(log_rest)
    of_rest = rest * (jnp.where(rest > 0, log_rest, 0.0) - own_rest)
    return jnp.sum(jnp.exp(log_probs) * (log_probs - own), axis=-1) + of_rest


def summed(
    logits: Logits,
    head: Any,
    hidden: jax.Array,
    base_logits: Logits,
    base_head: Any,
    base_hidden: jax.Array,
    weights: jax.Array,
    chunk: int,
    direction: str = "forward",
    temperature: float = 1.0,
    top_k: int = 0,
) -> jax.Array:
    """Weighted sum over [B, T] of `divergence` between two models, a float32 scalar.

    hidden [B, T, D], base_hidden [B, T, E], weights float32 [B, T]. The logits of both are divided
    by `temperature`, and exist for `chunk` positions at a time. No gradient flows to the base.
    top_k: of the base's columns in a forward `top_k_divergence`; 0 = all columns.
    """
    base_head, base_hidden = jax.lax.stop_gradient((base_head, base_hidden))

    def of_chunk(head, xs, base_head):
        mine, its, weights = xs
        both = logits(head, mine), base_logits(base_head, its)
        mine, its = both if temperature == 1.0 else (x / temperature for x in both)
        found = (
            top_k_divergence(mine, *top(its, top_k)) if top_k else divergence(mine, its, direction)
        )
        return jnp.sum(found * weights)

    return chunks.summed(of_chunk, head, (hidden, base_hidden, weights), chunk, (base_head,))


def summed_top_k(
    logits: Logits,
    head: Any,
    hidden: jax.Array,
    indices: jax.Array,
    log_probs: jax.Array,
    log_rest: jax.Array,
    weights: jax.Array,
    chunk: int,
    temperature: float = 1.0,
) -> jax.Array:
    """Weighted sum over [B, T] of `top_k_divergence`, a float32 scalar.

    indices int32 and log_probs float32 [B, T, K], log_rest float32 [B, T]: of the teacher at
    `temperature`, by which the model's logits are divided too.
    """

    def of_chunk(head, xs):
        hidden, *teacher, weights = xs
        found = top_k_divergence(logits(head, hidden) / temperature, *teacher)
        # Padding has K equal columns, of which the sum is no divergence.
        return jnp.sum(jnp.where(weights > 0, found, 0.0) * weights)

    return chunks.summed(of_chunk, head, (hidden, indices, log_probs, log_rest, weights), chunk)
