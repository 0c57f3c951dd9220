"""Attention with all scores at once: the oracle, and the one place that makes [B, H, T, S]."""

import jax
import jax.numpy as jnp

from lm.models.attention.bias import Bias
from lm.models.attention.mask import Mask
from lm.models.matmul import product


def biases(bias: Bias | jax.Array | None, mask: Mask) -> jax.Array | None:
    """The bias of all queries and keys of a mask, float32 [1, H, T, S]."""
    return bias.scores(mask.q_index, mask.k_index) if isinstance(bias, Bias) else bias


def values(
    q_BTHK, k_BSJK, v_BSJK, mask: Mask, bias=None, *, scale: float, softcap: float = 0.0
) -> jax.Array:
    """Compute softmax(scale q k + bias) v under the mask, [B, T, H, K].

    K is the head width. Each of the J key heads serves H / J query heads. With a soft cap, scaled
    scores become cap * tanh(score / cap) before the softmax (Gemma Team 2024, section 2). A query
    that sees no key gets the mean of all values, as from `jax.nn.dot_product_attention`.
    """
    seen, bias = mask.visible(), biases(bias, mask)
    if not softcap and q_BTHK.dtype.itemsize >= 4:
        return jax.nn.dot_product_attention(q_BTHK, k_BSJK, v_BSJK, bias, seen, scale=scale)
    scores = jnp.where(
        seen[:, :, None],
        _scores(q_BTHK, k_BSJK, bias, scale, softcap),
        jnp.finfo(jnp.float32).min,
    )
    p = jax.nn.softmax(scores, axis=-1).astype(v_BSJK.dtype)
    y = product("bjgts,bsjk->btjgk", p, v_BSJK, v_BSJK.dtype)
    return y.reshape(q_BTHK.shape)


def attend(
    q_BTHK, k_BSJK, v_BSJK, mask: Mask, bias=None, *, scale: float, softcap: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Compute `values`, and the log of the sum of exp(score) over the seen keys, float32 [B, T, H].

    A query that sees no key gets zeros, and -inf. This is what every backend must return.
    """
    y = values(q_BTHK, k_BSJK, v_BSJK, mask, bias, scale=scale, softcap=softcap)
    scores = _scores(q_BTHK, k_BSJK, biases(bias, mask), scale, softcap)
    seen = mask.visible()
    some = seen.any(-1, keepdims=True)  # [B, 1, T, 1]
    lse = jax.nn.logsumexp(scores, axis=-1, where=(seen | ~some)[:, :, None])
    lse = jnp.where(some[..., 0][:, :, None], lse, -jnp.inf).reshape(len(lse), -1, lse.shape[-1])
    return zero_unseen(y, mask), jnp.moveaxis(lse, 1, 2)


def zero_unseen(y_BTHK: jax.Array, mask: Mask) -> jax.Array:
    """Replace the values of queries that see no key by zeros."""
    return jnp.where(mask.visible().any(-1)[:, 0, :, None, None], y_BTHK, 0)


def _scores(q_BTHK, k_BSJK, bias, scale: float, softcap: float) -> jax.Array:
    """Scores in float32 [B, J, H / J, T, S], before the mask."""
    b, t, _, width = q_BTHK.shape
    grouped = q_BTHK.reshape(b, t, k_BSJK.shape[2], -1, width)
    dtype = q_BTHK.dtype
    scores = scale * product("btjgk,bsjk->bjgts", grouped, k_BSJK, dtype, jnp.float32)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    return scores if bias is None else scores + bias.reshape(1, *scores.shape[1:])
