"""Self-attention, cross-attention to an encoder and RETRO's attention to retrieved neighbours.

Rows may be packed or padded. Self-attention and cross-attention may use a KV cache.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.cache import ring_indices, slots
from lm.models.config import ModelConfig
from lm.models.layers import Norm, biased, constrain, stored, weight, wide
from lm.models.positions import relative_buckets, rotary_angles, rotate


class View(NamedTuple):
    """Mask and positions that all attention layers of one kind share.

    mask: bool [B, 1, T, S]. angles: from `rotary_angles`, or None. buckets: int32 [T, S], or None.
    """

    mask: jax.Array
    angles: tuple[jax.Array, jax.Array] | None
    buckets: jax.Array | None


def see(c: ModelConfig, kind: str, segments_BT, positions_BT, cache=None) -> View:
    """Build the View of the "global" or "local" layers.

    `cache` is the model's cache, whose segments already include this batch, or None.

    A token attends to tokens of its own document (equal segment ids; padding, id 0, attends to
    padding). A causal model excludes later tokens. A local layer excludes tokens at a distance of
    `sliding_window` or more. Without a cache the keys are the row's own tokens. With one they are
    all cache slots in order, or a ring buffer of the latest ones. If the batch has more than one
    token, its own keys follow the ring's.
    """
    length, window = segments_BT.shape[1], c.sliding_window if kind == "local" else 0
    query_T, key_segments_BS = jnp.arange(length), segments_BT
    key_S = query_T
    if cache is not None:
        start, key_segments_BS = cache["length"], cache["segments"]
        query_T, key_S = start + query_T, jnp.arange(key_segments_BS.shape[1])
        ring = slots(c, kind, len(key_S))
        if ring < len(key_S):
            key_S = (
                ring_indices(start, ring)
                if length == 1
                else jnp.concatenate([ring_indices(start - 1, ring), query_T])
            )
            key_segments_BS = jnp.where(key_S < 0, -1, key_segments_BS[:, jnp.maximum(key_S, 0)])
    mask = segments_BT[:, None, :, None] == key_segments_BS[:, None, None, :]
    ahead = key_S[None, :] - query_T[:, None]
    if c.causal:
        mask &= ahead <= 0
    if window:
        mask &= jnp.abs(ahead) < window
    theta = c.local_rope_theta if kind == "local" and c.local_rope_theta else c.rope_theta
    return View(
        mask,
        rotary_angles(c, positions_BT, theta) if c.positions == "rotary" else None,
        relative_buckets(c, query_T, key_S) if c.positions == "relative" else None,
    )


class RelativeBias(nn.Module):
    """Learned attention bias per bucket and head (Raffel et al. 2020, section 2.1)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, view: View) -> jax.Array:
        """Return the bias as float32 [1, H, T, S].

        float32 because layers and rows that share the bias sum its gradient.
        """
        c = self.config
        return jnp.moveaxis(
            wide(stored(self, "table", (c.relative_buckets, c.n_heads), "buckets heads"))[
                view.buckets
            ],
            -1,
            0,
        )[None]


def attend(c: ModelConfig, q_BTHK, k_BSJK, v_BSJK, mask, score_bias=None) -> jax.Array:
    """Compute softmax(scale q k + bias) v under the mask, [B, T, H, K].

    K is the head width. Each of the J key heads serves H / J query heads. With a soft cap, scaled
    scores become cap * tanh(score / cap) before the softmax (Gemma Team 2024, section 2).
    """
    scale, cap = c.score_dim**-0.5 if c.score_dim else None, c.attention_softcap
    if not cap:
        return jax.nn.dot_product_attention(q_BTHK, k_BSJK, v_BSJK, score_bias, mask, scale=scale)
    b, t, h, k = q_BTHK.shape
    grouped = q_BTHK.reshape(b, t, k_BSJK.shape[2], -1, k)
    scores = jnp.einsum(
        "btjgk,bsjk->bjgts", grouped, k_BSJK, preferred_element_type=jnp.float32
    ) * (scale or k**-0.5)
    scores = jnp.where(mask[:, :, None], cap * jnp.tanh(scores / cap), jnp.finfo(jnp.float32).min)
    y = jnp.einsum(
        "bjgts,bsjk->btjgk", jax.nn.softmax(scores, axis=-1).astype(v_BSJK.dtype), v_BSJK
    )
    return y.reshape(b, t, h, k)


def enter(module: nn.Module, x_BTD, name: str, with_bias: bool) -> jax.Array:
    """Project x to the "query", "key" or "value" of every head, [B, T, H or J, K]."""
    c: ModelConfig = module.config
    heads, axis = (c.n_heads, "heads") if name == "query" else (c.n_kv_heads, "kv_heads")
    y = jnp.einsum(
        "btd,dhk->bthk",
        x_BTD,
        weight(module, name, (x_BTD.shape[-1], heads, c.head_dim), f"embed {axis} head_dim"),
    )
    return biased(module, y, f"{name}_bias", f"{axis} head_dim") if with_bias else y


def leave(module: nn.Module, y_BTHK, with_bias: bool, init=None) -> jax.Array:
    """Project the heads' outputs to [B, T, D]."""
    c: ModelConfig = module.config
    out = weight(module, "out", (c.n_heads, c.head_dim, c.d_model), "heads head_dim embed", init)
    y = jnp.einsum("bthk,hkd->btd", constrain(y_BTHK, "batch length heads head_dim"), out)
    return biased(module, y, "out_bias", "norm") if with_bias else y


class Attention(nn.Module):
    """Grouped-query self-attention (Ainslie et al. 2023).

    With n_kv_heads == n_heads it is multi-head attention (Vaswani et al. 2017, section 3.2).

    Takes x_BTD [B, T, D], a View and `shared_bias` [1, H, T, S] or None. Returns [B, T, D] and the
    updated cache. The cache is None, or a dict with `key` and `value`
    [B, slots, n_kv_heads, head_dim]; the batch is written into it from index `start` on, modulo the
    slots.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, view: View, shared_bias=None, start=0, cache=None):
        c = self.config
        q, k, v = (enter(self, x_BTD, name, c.qkv_bias) for name in ("query", "key", "value"))
        if c.qk_norm != "none":
            q, k = self.normed(q, "query"), self.normed(k, "key")
        if view.angles is not None:
            q, k = rotate(q, view.angles), rotate(k, view.angles)
        q, k, v = (
            constrain(q, "batch length heads head_dim"),
            *(constrain(y, "batch length kv_heads head_dim") for y in (k, v)),
        )
        if cache is not None:
            (k, new_k), (v, new_v) = (
                self.remember(cache[name], y, view, start) for name, y in (("key", k), ("value", v))
            )
            cache = {**cache, "key": new_k, "value": new_v}
        if c.relative_per_layer:
            shared_bias = RelativeBias(c, name="relative_bias")(view)
        return leave(self, attend(c, q, k, v, view.mask, shared_bias), c.out_bias), cache

    def remember(self, old_BSJK, new_BTJK, view, start) -> tuple[jax.Array, jax.Array]:
        """Return the keys (or values) to attend to, and the cache slots after this batch.

        When the batch has more than one token, a ring buffer is read before it is overwritten.
        """
        ring, length = old_BSJK.shape[1], new_BTJK.shape[1]
        if view.mask.shape[-1] == ring:
            slots = jax.lax.dynamic_update_slice_in_dim(
                old_BSJK, new_BTJK, start % ring if length == 1 else start, axis=1
            )
            return slots, slots
        both = jnp.concatenate([old_BSJK, new_BTJK], axis=1)
        index = ring_indices(start + length - 1, ring)
        return both, both[:, jnp.where(index >= start, ring + index - start, jnp.arange(ring))]

    def normed(self, y_BTHK, name) -> jax.Array:
        flat = y_BTHK if self.config.qk_norm == "head" else y_BTHK.reshape(*y_BTHK.shape[:2], -1)
        return Norm(self.config, name=f"{name}_norm")(flat).reshape(y_BTHK.shape)


class CrossAttention(nn.Module):
    """A decoder's attention to its encoder's output (Vaswani et al. 2017, section 3.2.3).

    Takes x_BTD [B, T, D], source [B, S, D] and mask bool [B, 1, T, S]. Returns [B, T, D] and the
    cache, or None. With source None, `cross_key` and `cross_value` [B, S, J, K] are read from the
    cache, where an earlier call stored them.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, source_BSD, mask, cache=None):
        c = self.config
        q = constrain(enter(self, x_BTD, "query", c.qkv_bias), "batch length heads head_dim")
        if source_BSD is None:
            assert cache is not None, "LanguageModel asks for one of them"
            k, v = cache["cross_key"], cache["cross_value"]
        else:
            k, v = (
                constrain(enter(self, source_BSD, n, c.qkv_bias), "batch length kv_heads head_dim")
                for n in ("key", "value")
            )
        cache = None if cache is None else {**cache, "cross_key": k, "cross_value": v}
        return leave(self, attend(c, q, k, v, mask), c.out_bias), cache


class NeighbourAttention(nn.Module):
    """Chunked cross-attention to retrieved neighbours (Borgeaud et al. 2022, RETRO, section 2.4).

    Takes x_BTD [B, T, D], which begins at index `start` of its row, neighbours [B, C, S, N] and
    `of_BCS` int32 [B, C, S]: the segment that each neighbour token was retrieved for, 0 for
    padding. A row's chunks have `neighbour_chunk` tokens. The neighbours of chunk u are seen by its
    last token and by all but the last token of chunk u + 1, so a token never sees neighbours that
    were retrieved with later text. A token sees only neighbours of its own segment, and gets zeros
    where there are none. The output projection starts at zero, so adding this layer to a trained
    model changes nothing before training.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, neighbours_BCSN, of_BCS, segments_BT, start=0):
        c = self.config
        (batch, length, _), size = x_BTD.shape, c.neighbour_chunk
        # Groups of `size` tokens see the same chunk; they begin at -1, size - 1, 2 size - 1, ...
        first = start + 1
        groups = -(-(length + size - 1) // size)

        # [B, T, ...] -> [B * groups, size, ...]
        def grouped(x):
            room = jnp.zeros((batch, groups * size, *x.shape[2:]), x.dtype)
            return jax.lax.dynamic_update_slice_in_dim(room, x, first % size, axis=1).reshape(
                batch * groups, size, *x.shape[2:]
            )

        # [B, C, S, ...] -> [B * groups, S, ...]. The first group may precede every chunk, and the
        # last may follow them all; these get zeros.
        def chosen(x):
            x = jnp.pad(x, ((0, 0), (1, groups), *((0, 0),) * (x.ndim - 2)))
            return jax.lax.dynamic_slice_in_dim(x, first // size, groups, axis=1).reshape(
                batch * groups, *x.shape[2:]
            )

        source, of = chosen(neighbours_BCSN.astype(c.dtype)), chosen(of_BCS)
        mask = (grouped(segments_BT)[:, None, :, None] == of[:, None, None, :]) & (of != 0)[
            :, None, None, :
        ]
        q, k, v = (
            enter(self, grouped(x_BTD), "query", False),
            enter(self, source, "key", False),
            enter(self, source, "value", False),
        )
        y = jnp.where(mask.any(-1)[:, 0, :, None, None], attend(c, q, k, v, mask), 0)
        y = jax.lax.dynamic_slice_in_dim(
            y.reshape(batch, groups * size, *y.shape[2:]), first % size, length, axis=1
        )
        return leave(self, y, False, nn.initializers.zeros)
