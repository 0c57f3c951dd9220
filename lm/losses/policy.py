"""Losses of policy-gradient methods: pure functions of arrays [N, T] of answers' tokens."""

import jax
import jax.numpy as jnp


def ratios(log_probs: jax.Array, old: jax.Array, mask: jax.Array, per: str = "token") -> jax.Array:
    """Probability under the policy over that when the answer was drawn, float32 [N, T].

    per: "token"; or "sequence", for every token the geometric mean over its row (GSPO, Zheng et al.
    2025, equation 7), whose gradient reaches every token of the row.
    """
    change = jnp.where(mask > 0, log_probs - old, 0.0)
    if per == "sequence":
        tokens = jnp.maximum(jnp.sum(mask > 0, axis=1, keepdims=True), 1)
        change = jnp.broadcast_to(jnp.sum(change, axis=1, keepdims=True) / tokens, mask.shape)
    return jnp.exp(change)


def clipped(ratio: jax.Array, advantages: jax.Array, low: float, high: float) -> jax.Array:
    """The negative clipped surrogate of every token (Schulman et al. 2017, equation 7).

    The ratio is held within 1 - low and 1 + high, which may differ (DAPO, Yu et al. 2025, section
    3.1).
    """
    held = jnp.clip(ratio, 1 - low, 1 + high)
    return -jnp.minimum(ratio * advantages, held * advantages)


def k3(log_probs: jax.Array, reference: jax.Array) -> jax.Array:
    """Estimate of KL(policy || reference) at every token: r - log r - 1, r = reference / policy.

    It is unbiased and never negative (Shao et al. 2024, equation 4).
    """
    difference = reference - log_probs
    return jnp.exp(difference) - difference - 1


def value_losses(
    values: jax.Array, old: jax.Array, returns: jax.Array, clip: float
) -> tuple[jax.Array, jax.Array]:
    """Half the squared error of every token's value, and where the clipped one is larger.

    The new value is held within `clip` of the old one, and the larger error counts; 0 = not held.
    """
    plain = jnp.square(values - returns)
    if not clip:
        return 0.5 * plain, jnp.zeros_like(plain)
    held = jnp.square(jnp.clip(values, old - clip, old + clip) - returns)
    return 0.5 * jnp.maximum(plain, held), (held > plain).astype(jnp.float32)
