"""Bring the positions that a loss reads together, so that others cost no logits."""

import jax
import jax.numpy as jnp


def weighted_first(
    hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reorder the positions of each row: those with a weight first, in their order.

    hidden [B, T, D], targets and weights [B, T].
    """
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    take = lambda x: jnp.take_along_axis(x, order, axis=1)
    return _permuted(hidden, order), take(targets), take(weights)


@jax.custom_vjp
def _permuted(x_BTD: jax.Array, order_BT: jax.Array) -> jax.Array:
    """Reorder positions. The gradient is a gather too; of any gather it would be a scatter."""
    return jnp.take_along_axis(x_BTD, order_BT[..., None], axis=1)


_permuted.defvjp(
    lambda x, order: (_permuted(x, order), order),
    lambda order, g: (_permuted(g, jnp.argsort(order, axis=1)), None),
)
