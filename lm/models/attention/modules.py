"""Self-attention, cross-attention to an encoder and RETRO's attention to retrieved neighbours.

Rows may be packed or padded. Self-attention and cross-attention may use a KV cache.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.attention.backends import attend
from lm.models.attention.bias import Bias
from lm.models.attention.mask import Mask, View
from lm.models.cache import ring_indices
from lm.models.config import ModelConfig
from lm.models.layers import Norm, biased, constrain, stored, wide
from lm.models.matmul import matmul
from lm.models.positions import rotate


class RelativeBias(nn.Module):
    """Learned attention bias per bucket and head (Raffel et al. 2020, section 2.1)."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Bias:
        c = self.config
        table = wide(stored(self, "table", (c.relative_buckets, c.n_heads), "buckets heads"))
        return Bias(table, c.relative_max_distance, c.causal)


def enter(module: nn.Module, x_BTD, name: str, with_bias: bool) -> jax.Array:
    """Project x to the "query", "key" or "value" of every head, [B, T, H or J, K]."""
    c: ModelConfig = module.config
    heads, axis = (c.n_heads, "heads") if name == "query" else (c.n_kv_heads, "kv_heads")
    shape = (x_BTD.shape[-1], heads, c.head_dim)
    y = matmul(module, "btd,dhk->bthk", x_BTD, name, shape, f"embed {axis} head_dim")
    return biased(module, y, f"{name}_bias", f"{axis} head_dim") if with_bias else y


def leave(module: nn.Module, y_BTHK, with_bias: bool, init=None) -> jax.Array:
    """Project the heads' outputs to [B, T, D]."""
    c: ModelConfig = module.config
    y_BTHK = constrain(y_BTHK, "batch attention_length heads head_dim")
    shape = (c.n_heads, c.head_dim, c.d_model)
    y = matmul(module, "bthk,hkd->btd", y_BTHK, "out", shape, "heads head_dim embed", init)
    return biased(module, y, "out_bias", "norm") if with_bias else y


class Attention(nn.Module):
    """Grouped-query self-attention (Ainslie et al. 2023).

    With n_kv_heads == n_heads it is multi-head attention (Vaswani et al. 2017, section 3.2).

    Takes x_BTD [B, T, D], a View and the bias of all layers or None. Returns [B, T, D] and the
    updated cache. The cache is None, or a dict with `key` and `value`
    [B, n_kv_heads, slots, head_dim]; the batch is written into it from index `start` on, modulo the
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
            constrain(q, "batch attention_length heads head_dim"),
            *(constrain(y, "batch attention_length kv_heads head_dim") for y in (k, v)),
        )
        cached = cache is not None
        if cached:
            (k, new_k), (v, new_v) = (
                self.remember(cache[name], y, view, start) for name, y in (("key", k), ("value", v))
            )
            cache = {**cache, "key": new_k, "value": new_v}
        if c.relative_per_layer:
            shared_bias = RelativeBias(c, name="relative_bias")()
        y = attend(c, q, k, v, view.mask, shared_bias, cached=cached)
        return leave(self, y, c.out_bias), cache

    def remember(self, old_BJSK, new_BTJK, view, start) -> tuple[jax.Array, jax.Array]:
        """Return the keys (or values) to attend to, [B, S, J, K], and the cache after this batch.

        When the batch has more than one token, a ring buffer is read before it is overwritten.
        """
        new_BJTK = new_BTJK.swapaxes(1, 2)
        ring, length = old_BJSK.shape[2], new_BJTK.shape[2]
        if len(view.mask.k_index) == ring:
            slots = jax.lax.dynamic_update_slice_in_dim(
                old_BJSK, new_BJTK, start % ring if length == 1 else start, axis=2
            )
            return slots.swapaxes(1, 2), slots
        both = jnp.concatenate([old_BJSK, new_BJTK], axis=2)
        index = ring_indices(start + length - 1, ring)
        kept = both[:, :, jnp.where(index >= start, ring + index - start, jnp.arange(ring))]
        return both.swapaxes(1, 2), kept

    def normed(self, y_BTHK, name) -> jax.Array:
        flat = y_BTHK if self.config.qk_norm == "head" else y_BTHK.reshape(*y_BTHK.shape[:2], -1)
        return Norm(self.config, name=f"{name}_norm")(flat).reshape(y_BTHK.shape)


class CrossAttention(nn.Module):
    """A decoder's attention to its encoder's output (Vaswani et al. 2017, section 3.2.3).

    Takes x_BTD [B, T, D], source [B, S, D] and a Mask. Returns [B, T, D] and the
    cache, or None. With source None, `cross_key` and `cross_value` [B, J, S, K] are read from the
    cache, where an earlier call stored them.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, source_BSD, mask: Mask, cache=None):
        c = self.config
        q = constrain(
            enter(self, x_BTD, "query", c.qkv_bias), "batch attention_length heads head_dim"
        )
        if source_BSD is None:
            assert cache is not None, "LanguageModel asks for one of them"
            k, v = (cache[f"cross_{n}"].swapaxes(1, 2) for n in ("key", "value"))
        else:
            k, v = (
                constrain(
                    enter(self, source_BSD, n, c.qkv_bias),
                    "batch attention_length kv_heads head_dim",
                )
                for n in ("key", "value")
            )
        y = leave(self, attend(c, q, k, v, mask, cached=cache is not None), c.out_bias)
        if cache is not None and source_BSD is not None:
            cache = {**cache, "cross_key": k.swapaxes(1, 2), "cross_value": v.swapaxes(1, 2)}
        return y, cache


class NeighbourAttention(nn.Module):
    """Chunked cross-attention to retrieved neighbours (Borgeaud et al. 2022, RETRO, section 2.4).

    Takes x_BTD [B, T, D], which begins at index `start` of its row (a number, or int32 [B]; below 0
    with padding before a row), neighbours [B, C, S, N] and `of_BCS` int32 [B, C, S]: the segment
    that each neighbour token was retrieved for, 0 for padding. A row's chunks have
    `neighbour_chunk` tokens. The neighbours of chunk u are seen by its last token and by all but
    the last token of chunk u + 1, so a token never sees neighbours that were retrieved with later
    text. A token sees only neighbours of its own segment, and gets zeros where there are none. The
    output projection starts at zero, so adding this layer to a trained model changes nothing before
    training.
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
            return _each_row(jax.lax.dynamic_update_slice_in_dim, first % size, room, x).reshape(
                batch * groups, size, *x.shape[2:]
            )

        # [B, C, S, ...] -> [B * groups, S, ...]. The first group may precede every chunk, and the
        # last may follow them all; these get zeros.
        def chosen(x):
            before = 1 if jnp.ndim(first) == 0 else 1 + groups
            x = jnp.pad(x, ((0, 0), (before, groups), *((0, 0),) * (x.ndim - 2)))
            return _slices(x, first // size + before - 1, groups).reshape(
                batch * groups, *x.shape[2:]
            )

        source, of = chosen(neighbours_BCSN.astype(c.dtype)), chosen(of_BCS)
        mask = Mask.between(grouped(segments_BT), jnp.where(of == 0, -1, of))
        q, k, v = (
            enter(self, grouped(x_BTD), "query", False),
            enter(self, source, "key", False),
            enter(self, source, "value", False),
        )
        y = attend(c, q, k, v, mask, zero_unseen=True)
        y = _slices(y.reshape(batch, groups * size, *y.shape[2:]), first % size, length)
        return leave(self, y, False, nn.initializers.zeros)


def _slices(x, start, size: int) -> jax.Array:
    """Slice [B, size, ...] of x [B, N, ...] from `start` on, a number or int32 [B]."""
    return _each_row(lambda x, at, axis: jax.lax.dynamic_slice_in_dim(x, at, size, axis), start, x)


def _each_row(function, start, *arrays) -> jax.Array:
    """function(*arrays, start, axis=1), for rows with one start or one each."""
    if jnp.ndim(start) == 0:
        return function(*arrays, start, axis=1)
    return jax.vmap(lambda at, *rows: function(*rows, at, axis=0))(start, *arrays)
