"""Chunked cross-entropy: logits exist for [B, C, V] at a time, C a chunk of the length.

`summed` takes the gradient chunk by chunk in the forward pass: the loss is a sum, so its gradient
only waits for a scale, and the logits are computed once instead of twice. The idea is that of Liger
Kernel's fused linear cross-entropy (arXiv 2410.10989, section 3).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lm.losses import chunks, compact
from lm.losses.chunks import Logits, chunk_length, join, on_rows, split

SPARSE_CHUNKS = 16  # of a row most of whose weights are 0

__all__ = [
    "NOTHING",
    "Extra",
    "added_losses",
    "chunk_length",
    "per_token",
    "summed",
    "token_losses",
]


@dataclasses.dataclass(frozen=True)
class Extra:
    """Terms added to the cross-entropy; 0 turns a term off.

    smoothing: share of a target spread evenly over all V columns (Szegedy et al. 2016, section 7;
    `label_smoothing` of torch.nn.CrossEntropyLoss). z_loss: coefficient of log(Z)^2, with Z the sum
    of the exponentials of the logits (PaLM, Chowdhery et al. 2022, section 5).
    """

    smoothing: float = 0.0
    z_loss: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.smoothing or self.z_loss)


NOTHING = Extra()


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Compute -log softmax(logits)[target] in nats, float32 [...].

    logits [..., V], targets int [...].
    """
    logits = logits.astype(jnp.float32)
    hit = _hit(logits, targets)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)


def added_losses(logits: jax.Array, targets: jax.Array, extra: Extra) -> jax.Array:
    """Compute the terms of `extra` per token, float32 [...].

    The other arguments are those of `token_losses`.
    """
    logits = logits.astype(jnp.float32)
    added = jnp.float32(0)
    # (1 - s) nll + s mean(nll of all columns) = nll + s (target's logit - mean logit)
    if extra.smoothing:
        added += extra.smoothing * jnp.sum(
            jnp.where(_hit(logits, targets), logits, 0.0) - logits / logits.shape[-1], axis=-1
        )
    if extra.z_loss:
        added += extra.z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return added


def _hit(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mark the target's column, for a masked sum instead of a gather.

    With a sharded vocabulary the masked sum stays local, and its gradient needs no scatter.
    """
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]


def summed(
    logits: Logits,
    head: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    chunk: int,
    extra: Extra = NOTHING,
    sparse: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over [B, T] of the loss with `extra` and of the plain cross-entropy.

    hidden [B, T, D], targets int32 [B, T], weights float32 [B, T]; `chunk` positions at a time.
    sparse: most weights are 0, as in masked language modelling. Each row's weighted positions are
    brought together, and logits are computed only for the chunks that have some.
    Returns float32 scalars, which are equal without `extra`. The first is differentiable once, in
    `head` and `hidden`.
    """
    if sparse:
        chunk = min(chunk, max(1, -(-hidden.shape[1] // SPARSE_CHUNKS)))
    total, rest = _summed(logits, chunk, extra, sparse, head, hidden, targets, weights)
    return total, rest[0] if rest else total


def per_token(
    logits: Logits, head: Any, hidden: jax.Array, targets: jax.Array, chunk: int
) -> jax.Array:
    """Cross-entropy of every position, float32 [B, T], `chunk` positions at a time.

    The backward pass computes the logits again.
    """
    losses = lambda head, xs: token_losses(logits(head, xs[0]), xs[1])
    return chunks.mapped(losses, head, (hidden, targets), chunk)


def _chunk_sums(
    logits: Logits, extra: Extra, head, hidden, targets, weights
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return (loss, (cross-entropy,)), or (loss, ()) if they are equal."""
    scores = logits(head, hidden)
    plain = jnp.sum(token_losses(scores, targets) * weights)
    return (
        (plain + jnp.sum(added_losses(scores, targets, extra) * weights), (plain,))
        if extra
        else (plain, ())
    )


def _nothing_yet(extra: Extra):
    return jnp.float32(0), (jnp.float32(0),) if extra else ()


def _chunks(chunk, sparse, *arrays):
    """The chunks of arrays whose last are weights, and, if sparse, whether one has a weight."""
    parts = split(arrays, chunk)
    return parts, (parts[-1] != 0).any((1, 2)) if sparse else None


def _where_live(live, function, otherwise, *args):
    """function(*args), or otherwise(*args) for a chunk without weights."""
    return function(*args) if live is None else jax.lax.cond(live, function, otherwise, *args)


def _summed_forward_only(logits, chunk, extra, sparse, head, hidden, targets, weights):
    def of_rows(head, arrays, chunk):
        def body(total, chunk_and_live):
            xs, live = chunk_and_live
            add = lambda total: jax.tree.map(jnp.add, total, _chunk_sums(logits, extra, head, *xs))
            return _where_live(live, add, lambda total: total, total), None

        arrays = compact.weighted_first(*arrays)[0] if sparse else arrays
        sums, _ = jax.lax.scan(body, _nothing_yet(extra), _chunks(chunk, sparse, *arrays))
        return (), sums, None

    return on_rows(of_rows, head, (hidden, targets, weights), chunk)[1]


def _summed_and_gradients(logits, chunk, extra, sparse, head, hidden, targets, weights):
    value_and_grad = jax.value_and_grad(
        lambda *a: _chunk_sums(logits, extra, *a), argnums=(0, 1), has_aux=True
    )

    def of_rows(head, arrays, chunk):
        def add(carry, xs):
            total, head_gradient = carry
            value, (of_head, of_hidden) = value_and_grad(head, *xs)
            total = jax.tree.map(jnp.add, total, value)
            return (
                total,
                jax.tree.map(lambda a, b: a + b.astype(a.dtype), head_gradient, of_head),
            ), of_hidden

        def body(carry, chunk_and_live):
            xs, live = chunk_and_live
            nothing = lambda carry, xs: (carry, jnp.zeros_like(xs[0]))
            return _where_live(live, add, nothing, carry, xs)

        arrays, back = compact.weighted_first(*arrays) if sparse else (arrays, lambda x: x)
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), head)
        (sums, of_head), of_hidden = jax.lax.scan(
            body, (_nothing_yet(extra), zeros), _chunks(chunk, sparse, *arrays)
        )
        return back(join(of_hidden, arrays[0].shape[1])), sums, of_head

    of_hidden, total, of_head = on_rows(of_rows, head, (hidden, targets, weights), chunk)
    of_head = jax.tree.map(lambda g, p: g.astype(p.dtype), of_head, head)
    return total, (of_head, of_hidden)


def _scaled(logits, chunk, extra, sparse, gradients, scales):
    return (*jax.tree.map(lambda g: (g * scales[0]).astype(g.dtype), gradients), None, None)


_summed = jax.custom_vjp(_summed_forward_only, nondiff_argnums=(0, 1, 2, 3))
_summed.defvjp(_summed_and_gradients, _scaled)
