"""Attention by JAX's Pallas kernel for TPUs, "splash attention".

It makes no array [T, S], skips blocks that a causal mask or a window hides, and tells documents
apart by segment ids.
"""

import functools

import jax
import jax.numpy as jnp

from lm.models.attention import shards
from lm.models.attention.mask import Mask
from lm.models.config import ModelConfig

BLOCK = 512  # queries, and keys, computed at once
LANES = 128  # a block is a multiple of this
KERNEL = "jax.experimental.pallas.ops.tpu.splash_attention"


def why_not(c: ModelConfig, mask: Mask, platform: str) -> str:
    """Why the kernel cannot compute this model's attention under such a mask; "" if it can."""
    limits = {
        f"it needs a TPU, and this run is on {platform}": platform != "tpu",
        f"model.dtype={c.dtype!r}, which TPUs do not compute": c.dtype == "float16",
        f"model.head_dim={c.head_dim}, and it takes multiples of 64": c.head_dim % 64,
        "it takes no relative position bias (model.relative_buckets)": c.relative_buckets,
        "it has no mask for a prefix": mask.prefix is not None,
        "layers of one compiled loop have different windows (model.layer_pattern), and its window "
        "is fixed when it is compiled": not isinstance(mask.window, int),
        "its causal mask and window are for a row's own keys": (
            not mask.own and (mask.causal or mask.has_window)
        ),
        f"this release of jax, {jax.__version__}, does not have {KERNEL}": (
            platform == "tpu" and _kernels() is None
        ),
    }
    return next((limit for limit, holds in limits.items() if holds), "")


def attend(
    q_BTHK,
    k_BSJK,
    v_BSJK,
    mask: Mask,
    *,
    scale: float,
    softcap: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """Compute softmax(scale q k) v under the mask, [B, T, H, K]; zeros where no key is seen.

    interpret: run the kernel's operations one by one, which works on every platform.
    """
    splash = _kernels()

    def kernel(q, k, v, mask):
        (t, heads), s = q.shape[1:3], k.shape[1]
        block_t, block_s = (min(BLOCK, n + -n % LANES) for n in (t, s))
        more_t, more_s = -t % block_t, -s % block_s
        shape = (t + more_t, s + more_s)
        if mask.has_window:
            before = mask.window - 1
            seen = splash.LocalMask(shape, (before, 0 if mask.causal else before), 0)
        else:
            seen = (splash.CausalMask if mask.causal else splash.FullMask)(shape)
        run = splash.make_splash_mha(
            splash.MultiHeadMask([seen] * heads),
            block_sizes=splash.BlockSizes(
                block_q=block_t,
                block_kv=block_s,
                block_q_dkv=block_t,
                block_kv_dkv=block_s,
                block_q_dq=block_t,
                block_kv_dq=block_s,
            ),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap or None,
            interpret=interpret,
        )
        q = (scale * q.astype(jnp.float32)).astype(q.dtype)
        segments = splash.SegmentIds(
            jnp.pad(mask.q_segments, ((0, 0), (0, more_t)), constant_values=-2),
            jnp.pad(mask.k_segments, ((0, 0), (0, more_s)), constant_values=-3),
        )
        y = jax.vmap(run)(
            _heads_first(q, more_t), *(_heads_first(x, more_s) for x in (k, v)), segments
        )
        y = jnp.moveaxis(y, 1, 2)[:, :t]
        if mask.own:
            return y
        some = jax.vmap(functools.partial(jnp.isin, method="sort"))(
            mask.q_segments, mask.k_segments
        )
        return jnp.where(some[..., None, None], y, 0)

    return shards.local(kernel, q_BTHK, k_BSJK, v_BSJK, mask)


def _heads_first(x_BTHK: jax.Array, more: int) -> jax.Array:
    """Pad the length by `more` zeros, and return [B, H, T, K]."""
    return jnp.moveaxis(jnp.pad(x_BTHK, ((0, 0), (0, more), (0, 0), (0, 0))), 1, 2)


@functools.cache
def _kernels():
    """The module of the kernel, or None; imported when first used, which takes .2 s."""
    try:
        from jax.experimental.pallas.ops.tpu import splash_attention
    except ImportError:
        return None
    return splash_attention
