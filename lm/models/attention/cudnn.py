"""Attention by cuDNN's fused kernel on NVIDIA GPUs (`jax.nn.dot_product_attention`).

The kernel has a causal mask of its own, but none for packed documents. So it is given the mask of
every row as an array [B, 1, T, S] of 16 bits, and computes a gradient of that size, which is not
used. Dense attention holds float32 scores of all heads.
"""

import jax

from lm.models.attention import dense, shards
from lm.models.attention.mask import Mask
from lm.models.config import ModelConfig

MOST = 4096 * 4096  # queries times keys: 34 MB of mask for each row
DTYPES = ("bfloat16", "float16")


def why_not(c: ModelConfig, mask: Mask, platform: str) -> str:
    """Why cuDNN cannot compute this model's attention under such a mask; "" if it can."""
    queries, keys = mask.q_segments.shape[1], mask.k_segments.shape[1]
    capability = _capability() if platform == "gpu" else 0.0
    widest = 256 if capability >= 9 else 128
    limits = {
        f"it needs an NVIDIA GPU, and this run is on {platform}": not capability,
        f"it needs compute capability 8.0, and this GPU has {capability}": capability < 8,
        f"model.dtype={c.dtype!r}, and it computes {' and '.join(DTYPES)} alone": c.dtype
        not in DTYPES,
        f"model.head_dim={c.head_dim}, and on this GPU it takes multiples of 8 up to {widest}": (
            c.head_dim % 8 or c.head_dim > widest
        ),
        "it has no soft cap of scores (model.attention_softcap)": c.attention_softcap,
        "a relative position bias (model.relative_buckets) would be an array of all scores": (
            c.relative_buckets
        ),
        f"{queries} queries and {keys} keys: its backward pass takes even numbers alone": (
            queries % 2 or keys % 2
        ),
        f"the mask of {queries} queries and {keys} keys would take "
        f"{2e-6 * queries * keys:,.0f} MB for each row, of which {2e-6 * MOST:.0f} are allowed": (
            queries * keys > MOST
        ),
    }
    return next((limit for limit, holds in limits.items() if holds), "")


def attend(q_BTHK, k_BSJK, v_BSJK, mask: Mask, *, scale: float) -> jax.Array:
    """Compute softmax(scale q k) v under the mask, [B, T, H, K]; zeros where no key is seen."""

    def kernel(q, k, v, mask):
        y = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask.visible(),
            scale=scale,
            # makes it skip what lies above the diagonal
            is_causal=mask.own and mask.causal and mask.prefix is None,
            implementation="cudnn",
        )
        return y if mask.own else dense.zero_unseen(y, mask)

    return shards.local(kernel, q_BTHK, k_BSJK, v_BSJK, mask)


def _capability() -> float:
    """CUDA compute capability of this process' first device; 0 if it has none."""
    try:
        return float(jax.local_devices()[0].compute_capability)
    except (AttributeError, ValueError):  # no GPU; a GPU of AMD, whose name has letters
        return 0.0
