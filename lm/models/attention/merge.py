"""Join attention to parts of the keys into attention to all of them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def merge(parts: Sequence[tuple[jax.Array, jax.Array | None]]) -> tuple[jax.Array, jax.Array]:
    """Return (y, lse) of all keys, given those of each part: one softmax over all parts.

    y is [B, T, H, K] and lse float32 [B, T, H]. No key may be in two parts. Raises ValueError for a
    part without lse.
    """
    if bare := [i for i, (_, lse) in enumerate(parts) if lse is None]:
        raise ValueError(
            f"part {bare[0]} of {len(parts)} has no log-sum-exp, by which parts are joined "
            "('cudnn' and 'splash' have none with a gradient): compute it with 'dense' or 'chunked'"
        )
    y, lse = (jnp.stack(each) for each in zip(*parts, strict=True))
    highest = jax.lax.stop_gradient(lse.max(0))
    highest = jnp.where(jnp.isneginf(highest), 0, highest)  # no part has a key
    shares = jnp.exp(lse - highest)
    total = shares.sum(0)
    safe = jnp.where(total > 0, total, 1)
    joined = (shares[..., None] * y.astype(shares.dtype)).sum(0) / safe[..., None]
    return joined.astype(y.dtype), jnp.where(total > 0, highest + jnp.log(safe), -jnp.inf)
