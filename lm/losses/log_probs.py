"""Log-probabilities of given tokens and the entropy of the predictions, without [B, T, V]."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lm.losses.chunks import Logits, join, on_rows, split


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def log_probs(
    logits: Logits,
    head: Any,
    hidden: jax.Array,
    targets: jax.Array,
    chunk: int,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of `targets` and entropies of the predictions in nats, float32 [B, T] each.

    hidden [B, T, D], targets int32 [B, T]. The logits are divided by `temperature`; `chunk`
    positions at a time. Both results are differentiable in `head` and `hidden`. The backward pass
    computes the logits again and sums the gradient of `head` in float32.
    """
    return _forward(logits, head, hidden, targets, chunk, temperature)[0]


def _hit(scores: jax.Array, targets: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1) == targets[..., None]


def _forward(logits, head, hidden, targets, chunk, temperature):
    def of_rows(head, arrays, chunk):
        def body(_, xs):
            hidden, targets = xs
            scores = logits(head, hidden) / temperature
            log_z = jax.nn.logsumexp(scores, axis=-1)
            found = jnp.sum(jnp.where(_hit(scores, targets), scores, 0.0), axis=-1) - log_z
            every = scores - log_z[..., None]
            return None, (found, -jnp.sum(jnp.exp(every) * every, axis=-1), log_z)

        _, of_chunks = jax.lax.scan(body, None, split(arrays, chunk))
        return [join(x, arrays[0].shape[1]) for x in of_chunks], (), None

    (found, entropy, log_z), *_ = on_rows(of_rows, head, (hidden, targets), chunk)
    return (found, entropy), (head, hidden, targets, entropy, log_z)


def _backward(logits, chunk, temperature, kept, gradients):
    """With p the probabilities and H the entropy: d log p_t = [t] - p, dH = -p (log p + H)."""
    head, *arrays = kept

    def of_rows(head, arrays, chunk):
        def body(of_head, xs):
            hidden, targets, entropy, log_z, of_log_prob, of_entropy = xs
            scores, pull = jax.vjp(logits, head, hidden)
            every = scores / temperature - log_z[..., None]
            change = -jnp.exp(every) * (
                of_log_prob[..., None] + of_entropy[..., None] * (every + entropy[..., None])
            )
            change += jnp.where(_hit(scores, targets), of_log_prob[..., None], 0.0)
            own, of_hidden = pull(change / temperature)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), of_head, own), of_hidden

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), head)
        of_head, of_hidden = jax.lax.scan(body, zeros, split(arrays, chunk))
        return join(of_hidden, arrays[0].shape[1]), (), of_head

    half = -(-chunk // 2)  # here more arrays of the size of the logits exist at one time
    of_hidden, _, of_head = on_rows(of_rows, head, (*arrays, *gradients), half)
    of_head = jax.tree.map(lambda g, p: g.astype(p.dtype), of_head, head)
    return of_head, of_hidden, None


log_probs.defvjp(_forward, _backward)
