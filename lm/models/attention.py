"""Self-attention: multi-head and grouped-query, causal or bidirectional, packed or padded, with or without a KV cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.config import ModelConfig
from lm.models.layers import bias, constrain, weight
from lm.models.positions import rotate


def attention_mask(c: ModelConfig, segments_BT, key_segments_BS=None, start=0) -> jax.Array:
    """Who may look at whom: bool [B, 1, T, S].

    A token sees its own document (equal segment ids; padding, 0, sees padding), the past only if the model is causal, and
    at most `sliding_window` tokens. With a cache, keys fill S slots of which the queries take `start` .. `start` + T - 1.
    """
    key_segments_BS = segments_BT if key_segments_BS is None else key_segments_BS
    query_TS = start + jnp.arange(segments_BT.shape[1])[:, None]
    key_TS = jnp.arange(key_segments_BS.shape[1])[None, :]
    mask = segments_BT[:, None, :, None] == key_segments_BS[:, None, None, :]
    if c.causal:
        mask &= key_TS <= query_TS
    if c.sliding_window:
        mask &= jnp.abs(query_TS - key_TS) < c.sliding_window
    return mask


class Attention(nn.Module):
    """Grouped-query self-attention (Ainslie et al. 2023; n_kv_heads == n_heads is Vaswani et al. 2017, section 3.2).

    x_BTD [B, T, D], mask bool [B, 1, T, S], angles from `rotary_angles` or None -> [B, T, D] and the updated cache, a dict
    of `key` and `value` [B, S, n_kv_heads, head_dim] whose slots from `start` on are overwritten, or None.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, mask, angles=None, cache=None, start=0):
        c = self.config
        q, k, v = (self.project(x_BTD, *row) for row in (("query", "heads", c.n_heads), ("key", "kv_heads", c.n_kv_heads),
                                                         ("value", "kv_heads", c.n_kv_heads)))  # fmt: skip
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = constrain(q, "batch length heads head_dim"), *(constrain(y, "batch length kv_heads head_dim") for y in (k, v))
        if cache is not None:
            k, v = (jax.lax.dynamic_update_slice_in_dim(cache[n], y, start, axis=1) for n, y in (("key", k), ("value", v)))
            cache = {"key": k, "value": v}
        y = constrain(jax.nn.dot_product_attention(q, k, v, mask=mask), "batch length heads head_dim")
        y = jnp.einsum("bthk,hkd->btd", y, weight(self, "out", (c.n_heads, c.head_dim, c.d_model), "heads head_dim embed"))
        if c.out_bias:
            y = y + bias(self, "out_bias", (c.d_model,), "norm")
        return y, cache

    def project(self, x_BTD, name, heads, n_heads) -> jax.Array:
        c = self.config
        y = jnp.einsum("btd,dhk->bthk", x_BTD, weight(self, name, (c.d_model, n_heads, c.head_dim), f"embed {heads} head_dim"))
        return y + bias(self, f"{name}_bias", (n_heads, c.head_dim), f"{heads} head_dim") if c.qkv_bias else y
