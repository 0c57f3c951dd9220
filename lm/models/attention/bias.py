"""Relative position bias as data: a table and how it is read, never [T, S]."""

import dataclasses

import jax
import jax.numpy as jnp

from lm.models.positions import relative_buckets


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias:
    """Bias of the attention scores by distance (Raffel et al. 2020, section 2.1)."""

    table: jax.Array  # float32 [buckets, H]; layers and rows that share it sum its gradient
    max_distance: int = dataclasses.field(metadata={"static": True})
    causal: bool = dataclasses.field(metadata={"static": True})

    def scores(self, q_index: jax.Array, k_index: jax.Array) -> jax.Array:
        """Bias of queries and keys at these indices, float32 [1, H, T, S].

        For `dense.py`, and for blocks of indices.
        """
        buckets = relative_buckets(
            len(self.table), self.max_distance, self.causal, q_index, k_index
        )
        return jnp.moveaxis(self.table[buckets], -1, 0)[None]
