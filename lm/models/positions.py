"""Positions that act inside attention: rotary embeddings (Su et al. 2021, RoFormer, section 3.2)."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.config import ModelConfig


def rotary_frequencies(c: ModelConfig, theta: float) -> np.ndarray:
    """Radians a position, float32 [rotary_dim / 2]; `rope_scaling` {factor} is linear, with the other three names Llama 3's."""
    inverse = 1.0 / theta ** (np.arange(0, c.rotary_dim, 2, dtype=np.float64) / c.rotary_dim)
    scaling = dict(c.rope_scaling)
    if "low_freq_factor" in scaling:  # Llama 3.1 model card: long wavelengths are stretched, short ones kept, smooth between
        low, high, length = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["original_max_position_embeddings"]
        smooth = np.clip((length * inverse / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
        inverse = inverse * (smooth + (1.0 - smooth) / scaling["factor"])
    elif scaling:
        inverse = inverse / scaling["factor"]
    return inverse.astype(np.float32)


def rotary_angles(c: ModelConfig, positions_BT: jax.Array, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, 1, rotary_dim / 2], for int positions [B, T]."""
    angles = positions_BT.astype(jnp.float32)[..., None, None] * rotary_frequencies(c, theta)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHK: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns feature i with feature i + rotary_dim / 2 by the position's angle, those from rotary_dim on not; same shape and dtype."""
    cos, sin = angles
    turning, rest = jnp.split(x_BTHK, [2 * cos.shape[-1]], axis=-1) if 2 * cos.shape[-1] < x_BTHK.shape[-1] else (x_BTHK, None)
    first, second = jnp.split(turning.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHK.dtype)
    return turned if rest is None else jnp.concatenate([turned, rest], axis=-1)
