"""Self-attention: multi-head and grouped-query, causal or bidirectional, packed or padded, with or without a KV cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.config import ModelConfig
from lm.models.layers import Norm, bias, constrain, weight
from lm.models.positions import rotate


def attention_mask(c: ModelConfig, segments_BT, key_segments_BS=None, start=0, window: int = 0) -> jax.Array:
    """Who may look at whom: bool [B, 1, T, S].

    A token sees its own document (equal segment ids; padding, 0, sees padding), the past only if the model is causal, and
    tokens nearer than `window` (0: all). With a cache, keys fill S slots of which the queries take `start` .. `start` + T - 1.
    """
    key_segments_BS = segments_BT if key_segments_BS is None else key_segments_BS
    query_TS = start + jnp.arange(segments_BT.shape[1])[:, None]
    key_TS = jnp.arange(key_segments_BS.shape[1])[None, :]
    mask = segments_BT[:, None, :, None] == key_segments_BS[:, None, None, :]
    if c.causal:
        mask &= key_TS <= query_TS
    if window:
        mask &= jnp.abs(query_TS - key_TS) < window
    return mask


def softcapped_attention(q_BTHK, k_BSJK, v_BSJK, mask, scale: float, cap: float) -> jax.Array:
    """Attention whose scaled scores pass through cap * tanh(score / cap) before the softmax (Gemma Team 2024, section 2)."""
    b, t, h, k = q_BTHK.shape
    grouped = q_BTHK.reshape(b, t, k_BSJK.shape[2], -1, k)
    scores = jnp.einsum("btjgk,bsjk->bjgts", grouped, k_BSJK, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(mask[:, :, None], cap * jnp.tanh(scores / cap), jnp.finfo(jnp.float32).min)
    y = jnp.einsum("bjgts,bsjk->btjgk", jax.nn.softmax(scores, axis=-1).astype(v_BSJK.dtype), v_BSJK)
    return y.reshape(b, t, h, k)


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
        if c.qk_norm != "none":
            q, k = self.normed(q, "query"), self.normed(k, "key")
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = constrain(q, "batch length heads head_dim"), *(constrain(y, "batch length kv_heads head_dim") for y in (k, v))
        if cache is not None:
            k, v = (jax.lax.dynamic_update_slice_in_dim(cache[n], y, start, axis=1) for n, y in (("key", k), ("value", v)))
            cache = {"key": k, "value": v}
        scale = c.score_dim**-0.5 if c.score_dim else None
        if c.attention_softcap:
            y = softcapped_attention(q, k, v, mask, scale or c.head_dim**-0.5, c.attention_softcap)
        else:
            y = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale)
        y = constrain(y, "batch length heads head_dim")
        y = jnp.einsum("bthk,hkd->btd", y, weight(self, "out", (c.n_heads, c.head_dim, c.d_model), "heads head_dim embed"))
        if c.out_bias:
            y = y + bias(self, "out_bias", (c.d_model,), "norm")
        return y, cache

    def normed(self, y_BTHK, name) -> jax.Array:
        flat = y_BTHK if self.config.qk_norm == "head" else y_BTHK.reshape(*y_BTHK.shape[:2], -1)
        return Norm(self.config, name=f"{name}_norm")(flat).reshape(y_BTHK.shape)

    def project(self, x_BTD, name, heads, n_heads) -> jax.Array:
        c = self.config
        y = jnp.einsum("btd,dhk->bthk", x_BTD, weight(self, name, (c.d_model, n_heads, c.head_dim), f"embed {heads} head_dim"))
        return y + bias(self, f"{name}_bias", (n_heads, c.head_dim), f"{heads} head_dim") if c.qkv_bias else y
