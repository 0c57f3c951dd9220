"""Bring the positions that a loss reads together, so that others cost no logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Arrays = tuple[jax.Array, jax.Array, jax.Array]


def weighted_first(
    hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[Arrays, Callable[[jax.Array], jax.Array]]:
    """Reorder the positions of each row: those with a weight first, in their order.

    hidden [B, T, D], targets and weights [B, T]. Returns the three arrays, and the function that
    brings positions of an array [B, T, D] back into their places.
    """
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    take = lambda x: jnp.take_along_axis(x, order, axis=1)
    back = lambda x: _permuted(x, jnp.argsort(order, axis=1))
    return (_permuted(hidden, order), take(targets), take(weights)), back


def _permuted(x_BTD: jax.Array, order_BT: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BTD, order_BT[..., None], axis=1)
