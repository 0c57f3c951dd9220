"""Cross-entropy that never holds logits for a whole batch: [B, C, V] at a time, C a chunk of the length.

`summed` also takes the gradient chunk by chunk in the forward pass, as the loss is a sum and its gradient only waits for a scale: the
logits are computed once instead of twice (the idea of Liger Kernel's fused linear cross-entropy, arXiv 2410.10989, section 3).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LOGITS_AT_ONCE = 2**28  # bytes of float32 logits in a chunk, on each device

Logits = Callable[[Any, jax.Array], jax.Array]  # (head parameters, hidden [B, C, D]) -> logits float32 [B, C, V]


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(logits)[target] in nats, float32 [...]. logits [..., V], targets int [...]."""
    logits = logits.astype(jnp.float32)
    # A masked sum, not a gather: it stays local when the vocabulary is sharded, and its gradient is no scatter.
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)


def chunk_length(batch_size: int, length: int, vocab_size: int) -> int:
    """Positions per chunk such that a chunk's logits take at most LOGITS_AT_ONCE bytes a device, and never the whole length at once."""
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    fits = max(1, LOGITS_AT_ONCE * devices // (4 * batch_size * vocab_size))
    return min(fits, max(1, -(-length // 2)))


def summed(logits: Logits, head: Any, hidden: jax.Array, targets: jax.Array, weights: jax.Array, chunk: int) -> jax.Array:
    """Sum over [B, T] of weight * cross-entropy, a float32 scalar; differentiable once in `head` and `hidden`.

    hidden [B, T, D], targets int32 [B, T], weights float32 [B, T]; `chunk` positions at a time.
    """
    return _summed(logits, chunk, head, hidden, targets, weights)


def per_token(logits: Logits, head: Any, hidden: jax.Array, targets: jax.Array, chunk: int) -> jax.Array:
    """Cross-entropy of every position, float32 [B, T], `chunk` positions at a time."""

    def body(_, xs):
        return None, token_losses(logits(head, xs[0]), xs[1])

    _, losses = jax.lax.scan(body, None, _split((hidden, targets), chunk))
    return _join(losses, hidden.shape[1])


def _chunk_sum(logits: Logits, head, hidden, targets, weights) -> jax.Array:
    return jnp.sum(token_losses(logits(head, hidden), targets) * weights)


def _summed_forward_only(logits, chunk, head, hidden, targets, weights):
    def body(total, xs):
        return total + _chunk_sum(logits, head, *xs), None

    return jax.lax.scan(body, jnp.float32(0), _split((hidden, targets, weights), chunk))[0]


def _summed_and_gradients(logits, chunk, head, hidden, targets, weights):
    value_and_grad = jax.value_and_grad(lambda *a: _chunk_sum(logits, *a), argnums=(0, 1))

    def body(carry, xs):
        total, head_gradient = carry
        value, (of_head, of_hidden) = value_and_grad(head, *xs)
        return (total + value, jax.tree.map(lambda a, b: a + b.astype(a.dtype), head_gradient, of_head)), of_hidden

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), head)
    (total, of_head), of_hidden = jax.lax.scan(body, (jnp.float32(0), zeros), _split((hidden, targets, weights), chunk))
    of_head = jax.tree.map(lambda g, p: g.astype(p.dtype), of_head, head)
    return total, (of_head, _join(of_hidden, hidden.shape[1]))


_summed = jax.custom_vjp(_summed_forward_only, nondiff_argnums=(0, 1))
_summed.defvjp(
    _summed_and_gradients,
    lambda logits, chunk, gradients, scale: (*jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients), None, None),
)


def _split(arrays, chunk: int):
    """[B, T, ...] -> [ceil(T / chunk), B, chunk, ...], filled up with zeros: weight 0."""

    def split(x):
        short = -x.shape[1] % chunk
        x = jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, arrays)


def _join(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
