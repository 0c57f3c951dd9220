"""Attention in blocks of queries and keys, with an online softmax; memory grows with T alone.

The backward pass computes the scores again, block by block, from y and the log-sum-exp of the
scores (Dao et al. 2022, FlashAttention, section 3.1 and appendix B.2). A pair of blocks in which
no query sees a key is skipped.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.models.attention.bias import Bias
from lm.models.attention.mask import Mask
from lm.models.matmul import product

BLOCK = 512  # queries, and keys, computed at once
CPU_BLOCK = 128  # on a CPU, whose caches hold its scores


class Settings(NamedTuple):
    scale: float
    softcap: float
    t: int  # queries in a block
    s: int  # keys in a block


def attend(
    q_BTHK,
    k_BSJK,
    v_BSJK,
    mask: Mask,
    bias: Bias | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
    block: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Compute what `dense.attend` computes, without any array [T, S].

    block: queries, and keys, computed at once; 0 = what suits the platform.
    """
    block = block or (CPU_BLOCK if jax.default_backend() == "cpu" else BLOCK)
    (b, length, h, width), keys, j = q_BTHK.shape, k_BSJK.shape[1], k_BSJK.shape[2]
    n = Settings(scale, softcap, min(block, length), min(block, keys))
    more_q, more_k = -length % n.t, -keys % n.s
    pad = lambda x, more, **how: jnp.pad(
        x, ((0, 0),) * (x.ndim > 1) + ((0, more),) + ((0, 0),) * (x.ndim - 2), **how
    )
    mask = dataclasses.replace(
        mask,
        q_segments=pad(mask.q_segments, more_q, constant_values=-2),
        k_segments=pad(mask.k_segments, more_k, constant_values=-3),
        q_index=pad(mask.q_index, more_q, mode="edge"),
        k_index=pad(mask.k_index, more_k, mode="edge"),
        prefix=None if mask.prefix is None else pad(mask.prefix, more_k),
    )
    q = pad(q_BTHK, more_q).reshape(b, -1, j, h // j, width)
    y, lse = _attend(n, q, pad(k_BSJK, more_k), pad(v_BSJK, more_k), bias, mask)
    return y.reshape(b, -1, h, width)[:, :length], lse.reshape(b, -1, h)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(n: Settings, q, k, v, bias, mask):
    """Map q [B, T, J, G, K] and k, v [B, S, J, K], whole blocks, to y and lse [B, T, J, G]."""
    b, length, j, g, width = q.shape
    live = _live(mask, n)

    def of_queries(at_q):
        q_t = _cut(q, at_q, n.t)

        def add(at_k, so_far):
            highest, total, y = so_far
            scores = _scores(n, q_t, _cut(k, at_k, n.s), bias, _block(n, mask, at_q, at_k))
            new = jnp.maximum(highest, scores.max(-1))
            safe = jnp.where(jnp.isneginf(new), 0, new)
            p, fade = jnp.exp(scores - safe[..., None]), jnp.exp(highest - safe)
            seen = jnp.einsum(
                "bjgts,bsjk->bjgtk",
                p.astype(v.dtype),
                _cut(v, at_k, n.s),
                preferred_element_type=jnp.float32,
            )
            return new, fade * total + p.sum(-1), fade[..., None] * y + seen

        room = (b, j, g, n.t)
        highest, total, y = jax.lax.fori_loop(
            *_span(live[at_q]),
            lambda at_k, so_far: jax.lax.cond(
                live[at_q, at_k], lambda x: add(at_k, x), lambda x: x, so_far
            ),
            (jnp.full(room, -jnp.inf), jnp.zeros(room), jnp.zeros((*room, width))),
        )
        safe = jnp.where(total > 0, total, 1)
        lse = jnp.where(total > 0, highest + jnp.log(safe), -jnp.inf)
        return (y / safe[..., None]).astype(v.dtype), lse

    y, lse = jax.lax.map(of_queries, jnp.arange(length // n.t))
    return (
        jnp.einsum("nbjgtk->bntjgk", y).reshape(q.shape),
        jnp.einsum("nbjgt->bntjg", lse).reshape(q.shape[:-1]),
    )


def _attend_fwd(n: Settings, q, k, v, bias, mask):
    y, lse = _attend(n, q, k, v, bias, mask)
    return (y, lse), (q, k, v, bias, mask, y, lse)


def _attend_bwd(n: Settings, kept, cotangents):
    q, k, v, bias, mask, y, lse = kept
    dy, dlse = cotangents
    some, live = ~jnp.isneginf(lse), _live(mask, n)
    lse = jnp.where(some, lse, 0)
    # the derivative of both results by a score is its probability times (dp - rest)
    rest = jnp.einsum("btjgk,btjgk->btjg", dy, y, preferred_element_type=jnp.float32)
    rest = jnp.where(some, rest - dlse, 0)
    rows = lambda x, at_q: jnp.moveaxis(_cut(x, at_q, n.t), 1, -1)[..., None]  # [B, J, G, t, 1]

    def of_keys(so_far, at_k):
        k_s, v_s = _cut(k, at_k, n.s), _cut(v, at_k, n.s)

        def add(at_q, so_far):
            dq, dk, dv, dbias = so_far
            dy_t, block = _cut(dy, at_q, n.t), _block(n, mask, at_q, at_k)
            scores, back = jax.vjp(
                lambda *parts: _scores(n, *parts, block), _cut(q, at_q, n.t), k_s, bias
            )
            p = jnp.exp(scores - rows(lse, at_q))
            dv += jnp.einsum(
                "bjgts,btjgk->bsjk", p.astype(v.dtype), dy_t, preferred_element_type=jnp.float32
            )
            dp = jnp.einsum("btjgk,bsjk->bjgts", dy_t, v_s, preferred_element_type=jnp.float32)
            dq_t, dk_s, dbias_ts = back(p * (dp - rows(rest, at_q)))
            dq = jax.lax.dynamic_update_slice_in_dim(
                dq, _cut(dq, at_q, n.t) + dq_t, at_q * n.t, axis=1
            )
            return dq, dk + dk_s, dv, jax.tree.map(jnp.add, dbias, dbias_ts)

        dq, dbias = so_far
        dq, dk, dv, dbias = jax.lax.fori_loop(
            *_span(live[:, at_k]),
            lambda at_q, so_far: jax.lax.cond(
                live[at_q, at_k], lambda x: add(at_q, x), lambda x: x, so_far
            ),
            (dq, jnp.zeros(k_s.shape), jnp.zeros(v_s.shape), dbias),
        )
        return (dq, dbias), (dk.astype(k.dtype), dv.astype(v.dtype))

    start = jnp.zeros(q.shape), jax.tree.map(jnp.zeros_like, bias)
    (dq, dbias), (dk, dv) = jax.lax.scan(of_keys, start, jnp.arange(k.shape[1] // n.s))
    whole = lambda x: jnp.moveaxis(x, 0, 1).reshape(k.shape)
    return dq.astype(q.dtype), whole(dk), whole(dv), dbias, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _scores(n: Settings, q_t, k_s, bias: Bias | None, mask: Mask) -> jax.Array:
    """Scores of a block in float32 [B, J, G, t, s], -inf where the mask hides a key."""
    scores = n.scale * product("btjgk,bsjk->bjgts", q_t, k_s, q_t.dtype, jnp.float32)
    if n.softcap:
        scores = n.softcap * jnp.tanh(scores / n.softcap)
    if bias is not None:
        own = bias.scores(mask.q_index, mask.k_index)
        scores += own.reshape(1, *scores.shape[1:])
    return jnp.where(mask.visible()[:, :, None], scores, -jnp.inf)


def _cut(x: jax.Array, at, n: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, at * n, n, axis=1)


def _block(n: Settings, mask: Mask, at_q, at_k) -> Mask:
    return mask.block(at_q * n.t, n.t, at_k * n.s, n.s)


def _span(live: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first live block, and one past the last; (0, 0) if there is none."""
    first, last = jnp.argmax(live), len(live) - jnp.argmax(live[::-1])
    return jnp.where(live.any(), first, 0), jnp.where(live.any(), last, 0)


def sees(mask: Mask) -> jax.Array:
    """Whether some query may see some key, bool []."""
    return _live(mask, Settings(0, 0, len(mask.q_index), len(mask.k_index)))[0, 0]


def _live(mask: Mask, n: Settings) -> jax.Array:
    """Whether some query of a block may see some key of another, bool [T / t, S / s].

    Judged by the lowest and highest segments and indices of each block.
    """
    ends = lambda x, size: (
        x.reshape(*x.shape[:-1], -1, size).min(-1),
        x.reshape(*x.shape[:-1], -1, size).max(-1),
    )
    (q_low, q_high), (k_low, k_high) = ends(mask.q_segments, n.t), ends(mask.k_segments, n.s)
    live = (q_low[:, :, None] <= k_high[:, None]) & (k_low[:, None] <= q_high[:, :, None])
    live = live.any(0)
    (q_low, q_high), (k_low, k_high) = ends(mask.q_index, n.t), ends(mask.k_index, n.s)
    after, before = k_low - q_high[:, None], q_low[:, None] - k_high  # least distances
    if mask.causal and mask.prefix is None:
        live &= after <= 0
    return live & mask.within(jnp.maximum(after, before)) if mask.has_window else live
