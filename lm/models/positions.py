"""Computed positions: sinusoids, rotary angles and relative buckets."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.config import ModelConfig


def sinusoids(c: ModelConfig, positions_BT: jax.Array) -> jax.Array:
    """Sinusoidal position vectors, float32 [B, T, D], for int positions [B, T].

    Sines, then cosines, of wavelengths from 2 pi to 10000 * 2 pi (Vaswani et al. 2017, section 3.5,
    in the order of their implementation).
    """
    frequencies = (10_000.0 ** (-np.arange(0, c.d_model, 2, dtype=np.float64) / c.d_model)).astype(
        np.float32
    )
    angles = positions_BT.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_buckets(
    buckets: int, max_distance: int, causal: bool, query_T: jax.Array, key_S: jax.Array
) -> jax.Array:
    """Bucket of every pair of a query and a key index, int32 [T, S].

    See Raffel et al. 2020, section 2.1. Half of the buckets are for single distances, the other
    half for ranges that grow with the distance up to `max_distance`. A bidirectional model has one
    set of buckets for keys before the query and one for keys after it.
    """
    buckets = buckets if causal else buckets // 2
    single, distance = buckets // 2, np.arange(max_distance + 1)
    with np.errstate(divide="ignore"):
        growth = np.log(distance.astype(np.float32) / single) / np.float32(
            np.log(max_distance / single)
        )
    far = np.where(
        distance < single, 0, single + np.maximum(growth, 0) * (buckets - single)
    ).astype(np.int32)
    of_distance = jnp.asarray(
        np.where(distance < single, distance, np.minimum(far, buckets - 1)), jnp.int32
    )
    ahead = key_S[None, :] - query_T[:, None]
    apart = jnp.maximum(-ahead, 0) if causal else jnp.abs(ahead)
    bucket = of_distance[jnp.minimum(apart, max_distance)]
    return bucket if causal else bucket + jnp.where(ahead > 0, buckets, 0)


def rotary_frequencies(c: ModelConfig, theta: float) -> np.ndarray:
    """Rotary frequencies in radians per position, float32 [rotary_dim / 2].

    `rope_scaling` with factor alone is linear scaling; with the other three names it is Llama 3's.
    """
    inverse = 1.0 / theta ** (np.arange(0, c.rotary_dim, 2, dtype=np.float64) / c.rotary_dim)
    scaling = dict(c.rope_scaling)
    # Llama 3.1 model card: long wavelengths are stretched, short ones kept, smooth between
    if "low_freq_factor" in scaling:
        low, high, length = (
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
            scaling["original_max_position_embeddings"],
        )
        smooth = np.clip((length * inverse / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
        inverse = inverse * (smooth + (1.0 - smooth) / scaling["factor"])
    elif scaling:
        inverse = inverse / scaling["factor"]
    return inverse.astype(np.float32)


def rotary_angles(
    c: ModelConfig, positions_BT: jax.Array, theta: float
) -> tuple[jax.Array, jax.Array]:
    """cos and sin of the angles for int positions [B, T], float32 [B, T, 1, rotary_dim / 2]."""
    angles = positions_BT.astype(jnp.float32)[..., None, None] * rotary_frequencies(c, theta)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHK: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate features i and i + rotary_dim / 2 by the position's angle; same shape and dtype.

    Features from rotary_dim on are unchanged.
    """
    cos, sin = angles
    turning, rest = (
        jnp.split(x_BTHK, [2 * cos.shape[-1]], axis=-1)
        if 2 * cos.shape[-1] < x_BTHK.shape[-1]
        else (x_BTHK, None)
    )
    first, second = jnp.split(turning.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x_BTHK.dtype)
    return turned if rest is None else jnp.concatenate([turned, rest], axis=-1)
