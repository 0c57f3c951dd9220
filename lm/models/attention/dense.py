"""Attention with all scores at once: the oracle, and the one place that makes [B, H, T, S]."""

import jax
import jax.numpy as jnp

from lm.models.attention.bias import Bias
from lm.models.attention.mask import Mask
from lm.models.config import ModelConfig


def biases(bias: Bias | jax.Array | None, mask: Mask) -> jax.Array | None:
    """The bias of all queries and keys of a mask, float32 [1, H, T, S], for all layers."""
    return bias.scores(mask.q_index, mask.k_index) if isinstance(bias, Bias) else bias


def attend(
    c: ModelConfig, q_BTHK, k_BSJK, v_BSJK, mask: Mask, bias: Bias | jax.Array | None = None
) -> jax.Array:
    """Compute softmax(scale q k + bias) v under the mask, [B, T, H, K].

    K is the head width. Each of the J key heads serves H / J query heads. With a soft cap, scaled
    scores become cap * tanh(score / cap) before the softmax (Gemma Team 2024, section 2).
    """
    scale, cap = c.score_dim**-0.5 if c.score_dim else None, c.attention_softcap
    seen, bias = mask.visible(), biases(bias, mask)
    if not cap:
        return jax.nn.dot_product_attention(q_BTHK, k_BSJK, v_BSJK, bias, seen, scale=scale)
    b, t, h, k = q_BTHK.shape
    grouped = q_BTHK.reshape(b, t, k_BSJK.shape[2], -1, k)
    scores = jnp.einsum(
        "btjgk,bsjk->bjgts", grouped, k_BSJK, preferred_element_type=jnp.float32
    ) * (scale or k**-0.5)
    scores = jnp.where(seen[:, :, None], cap * jnp.tanh(scores / cap), jnp.finfo(jnp.float32).min)
    y = jnp.einsum(
        "bjgts,bsjk->btjgk", jax.nn.softmax(scores, axis=-1).astype(v_BSJK.dtype), v_BSJK
    )
    return y.reshape(b, t, h, k)
