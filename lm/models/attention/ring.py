"""Attention of rows that are split over devices (context parallelism), by the ordinary backends.

Every device has the queries, keys and values of one part of a row. Short rows gather all keys and
values (Dubey et al. 2024, Llama 3, section 3.3.2). In long rows the keys and values travel from
device to device, and `merge` joins what each part gives (Liu et al. 2023, Ring Attention, section
3). The backward pass sends them round again, with their gradients, so that no device ever holds
those of the whole row.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.models import shards
from lm.models.attention import chunked
from lm.models.attention.bias import Bias
from lm.models.attention.mask import Mask
from lm.models.attention.merge import merge
from lm.models.shards import Axes, mesh_axes, moved, spec

MOST_GATHERED = 16 * 1024  # more keys travel

# q, k, v, mask, bias of one device -> y, lse; see `Backend`
Local = Callable[..., tuple[jax.Array, jax.Array]]


class Ring(NamedTuple):
    """Which keys a device meets: those of part i + ahead first, then of the parts before it."""

    ahead: int
    visits: int  # parts that it meets, its own included


def split(length: int) -> Axes:
    """Mesh axes that split the queries of rows of this length."""
    return mesh_axes("attention_length", length)


def of_device(mask: Mask) -> Mask:
    """Mask of one device's queries and the keys that it meets at a time, of the same sizes."""
    parts = shards.parts(split(len(mask.q_index)))
    if parts == 1:
        return mask
    keys = shards.parts(split(len(mask.k_index))) if joins(mask) else 1
    t, s = len(mask.q_index) // parts, len(mask.k_index) // keys
    return dataclasses.replace(mask.block(0, t, 0, s), own=False)


def joins(mask: Mask) -> bool:
    """Whether the keys travel, so that partial results are joined."""
    return _ring(mask, split(len(mask.k_index))) is not None


def described(mask: Mask) -> str:
    """How rows of this mask are split, for the first lines of a run; "" if they are not."""
    parts = shards.parts(split(len(mask.q_index)))
    if parts == 1:
        return ""
    ring = _ring(mask, split(len(mask.k_index)))
    return f" in {parts} parts, " + (f"a ring of {ring.visits}" if ring else "all keys gathered")


def _ring(mask: Mask, axes: Axes) -> Ring | None:
    """The ring of a mask whose keys are split over these axes; None if they are gathered."""
    if not axes or not split(len(mask.q_index)):
        return None
    window = mask.window if isinstance(mask.window, int) and mask.own else 0
    backwards = mask.causal and mask.prefix is None
    return ring_of(len(mask.k_index), shards.parts(axes), window, backwards)


def ring_of(keys: int, parts: int, window: int, backwards: bool) -> Ring | None:
    """The ring that the keys of rows of this length travel, or None to gather them.

    A window of a few parts needs no other parts: then the keys travel however short the row is.
    backwards: no query sees a later key.
    """
    if window:
        near = -(-(window - 1) // (keys // parts))
        ahead = 0 if backwards else near
        if ahead + 1 + near < parts:
            return Ring(ahead, ahead + 1 + near)
    return Ring(0, parts) if keys > MOST_GATHERED else None


def attend(local: Local, q, k, v, mask: Mask, bias: Bias | None, *, cached: bool) -> jax.Array:
    """Compute attention by `local` on every device, [B, T, H, K].

    q [B, T, H, K], whose length must be split; k and v [B, S, J, K], which are whole on every
    device if they are a cache's or S does not divide. A query that sees no key gets zeros.
    """
    length = split(q.shape[1])
    keys = () if cached else split(k.shape[1])
    batch, heads = mesh_axes("batch", q.shape[0]), mesh_axes("heads", q.shape[2])
    if heads != mesh_axes("kv_heads", k.shape[2]):
        heads = ()
    ring = _ring(mask, keys)
    known = keys if ring else ()  # what is known of the keys is small: it is gathered at once
    of_mask = dataclasses.replace(
        mask,
        q_segments=spec(batch, length),
        k_segments=spec(batch, known),
        q_index=spec(length),
        k_index=spec(known),
        prefix=None if mask.prefix is None else spec(batch, known),
        window=mask.window if isinstance(mask.window, int) else spec(),
        own=False,
    )
    of_bias = None if bias is None else dataclasses.replace(bias, table=spec((), heads))
    of_q, of_k = spec(batch, length, heads, ()), spec(batch, keys, heads, ())

    def run(q, k, v, mask, bias):
        if ring:
            joined = functools.partial(local, joined=True)
            return _travelled((joined, ring, keys), q, (k, v), mask, bias)
        if keys:
            k, v = (jax.lax.all_gather(x, keys, axis=1, tiled=True) for x in (k, v))
        return local(q, k, v, mask, bias)[0]

    of_devices = shards.mapped(run, (of_q, of_k, of_k, of_mask, of_bias), of_q)
    return of_devices(q, k, v, dataclasses.replace(mask, own=False), bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _travelled(how: tuple[Local, Ring, Axes], q, kv, mask: Mask, bias: Bias | None):
    return _forward(how, q, kv, mask, bias)[0]


def _forward(how, q, kv, mask, bias):
    """Return y, and lse float32 [B, T, H], of all keys that are met."""
    local, ring, axes = how

    def add(so_far, kv, known):
        met = dataclasses.replace(mask, **known)
        join = lambda: merge([so_far, local(q, *kv, met, bias)])
        return jax.lax.cond(chunked.sees(met), join, lambda: so_far)

    def visit(_, carry):
        so_far, *keys = carry
        following = moved(keys, axes, 1)  # does not wait for the attention
        return add(so_far, *keys), *following

    nothing = jnp.zeros(q.shape), jnp.full(q.shape[:-1], -jnp.inf)
    keys = moved((kv, _known(mask)), axes, -ring.ahead)
    so_far, *keys = jax.lax.fori_loop(0, ring.visits - 1, visit, (nothing, *keys))
    y, lse = add(so_far, *keys)
    return y.astype(kv[1].dtype), lse


def _forward_kept(how, q, kv, mask, bias):
    y, lse = _forward(how, q, kv, mask, bias)
    return y, (q, kv, mask, bias, y, lse)


def _backward(how, kept, dy):
    """Gradients, part by part; those of keys and values travel with them, and then home.

    With w the share of a part in the softmax, exp(its lse - lse), y is the sum of w times its y. So
    the gradient of its y is w dy, and that of its lse is w dy (its y - y).
    """
    local, ring, axes = how
    q, kv, mask, bias, y, lse = kept
    inner = lambda x: (dy.astype(jnp.float32) * x).sum(-1)
    whole = inner(y)

    def add(gradients, kv, known):
        met = dataclasses.replace(mask, **known)

        def found():
            part = lambda q, kv, bias: local(q, *kv, met, bias)
            (y_s, lse_s), back = jax.vjp(part, q, kv, bias)
            share = jnp.where(jnp.isneginf(lse_s), 0, jnp.exp(lse_s - lse))
            of_y = (share[..., None] * dy).astype(y_s.dtype)
            return jax.tree.map(
                lambda so_far, g: so_far + g, gradients, back((of_y, share * (inner(y_s) - whole)))
            )

        return jax.lax.cond(chunked.sees(met), found, lambda: gradients)

    def visit(_, carry):
        (dq, dkv, dbias), *keys = carry
        following = moved(keys, axes, 1)
        dq, dkv, dbias = add((dq, dkv, dbias), *keys)
        return (dq, moved(dkv, axes, 1), dbias), *following

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (q, kv, bias))
    keys = moved((kv, _known(mask)), axes, -ring.ahead)
    gradients, *keys = jax.lax.fori_loop(0, ring.visits - 1, visit, (zeros, *keys))
    dq, dkv, dbias = add(gradients, *keys)
    dkv = moved(dkv, axes, ring.ahead - ring.visits + 1)
    narrow = lambda gradient, x: jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, x)
    return narrow(dq, q), narrow(dkv, kv), None, narrow(dbias, bias)


_travelled.defvjp(_forward_kept, _backward)


def _known(mask: Mask) -> dict[str, Any]:
    """What a mask says of the keys."""
    return {name: getattr(mask, name) for name in ("k_segments", "k_index", "prefix")}
