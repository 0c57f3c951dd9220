"""Losses of preference pairs, as functions of the log-probabilities of both answers.

All arguments are float32 arrays of one shape, log-probabilities summed over an answer's tokens;
each result is a loss per pair.
"""

import jax
import jax.numpy as jnp

KINDS = ("sigmoid", "ipo", "hinge")


def per_answer(values: jax.Array, segments: jax.Array) -> jax.Array:
    """Sums of values [B, T] over each segment: float32 [B, P, 2], of P pairs (chosen, rejected).

    The answers of pair i of a row are the segments 2i - 1 and 2i. P is that of rows with two tokens
    a pair; sums of absent pairs are 0.
    """
    rows, length = values.shape
    pairs = max(1, length // 2)
    at = jnp.where(segments <= 2 * pairs, segments, 0)
    zeros = jnp.zeros((rows, 2 * pairs + 1), jnp.float32)
    sums = zeros.at[jnp.arange(rows)[:, None], at].add(values.astype(jnp.float32))
    return sums[:, 1:].reshape(rows, pairs, 2)


def preferred(margin: jax.Array, kind: str, beta: float, smoothing: float = 0.0) -> jax.Array:
    """Loss of the margin of the log-ratios, chosen minus rejected.

    sigmoid: -log sigmoid(beta m) (Rafailov et al. 2023, equation 7). hinge: max(0, 1 - beta m)
    (Zhao et al. 2023). ipo: (m - 1 / (2 beta))^2 (Azar et al. 2024, equation 17).
    smoothing: probability that a label is wrong; the loss of -m has this weight (Mitchell 2023).
    """

    def loss(margin):
        if kind == "ipo":
            return (margin - 1 / (2 * beta)) ** 2
        if kind == "hinge":
            return jax.nn.relu(1 - beta * margin)
        return jax.nn.softplus(-beta * margin)

    return (1 - smoothing) * loss(margin) + (smoothing * loss(-margin) if smoothing else 0.0)


def judged(ratio: jax.Array, desirable: jax.Array, kl: jax.Array, beta: float) -> jax.Array:
    """Loss of single answers, without the weights of labels: 1 - v.

    v = sigmoid(beta (ratio - kl)) of desirable answers, and sigmoid(beta (kl - ratio)) of others
    (KTO, Ethayarajh et al. 2024, equations 7 and 8). kl: estimate of the divergence from the
    reference, a scalar without a gradient.
    """
    gain = jnp.where(desirable > 0, ratio - kl, kl - ratio)
    return jax.nn.sigmoid(-beta * gain)


def log_odds(mean_log_prob: jax.Array) -> jax.Array:
    """log(p / (1 - p)) of p = exp(mean_log_prob), finite also at p = 1 (Hong et al. 2024)."""
    mean = jnp.minimum(mean_log_prob, -1e-6)
    return mean - jnp.log(-jnp.expm1(mean))
