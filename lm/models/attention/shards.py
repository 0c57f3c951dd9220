"""Run an attention kernel on each device's own rows and heads.

The partitioner cannot split a kernel, and attention needs no rows or heads of other devices.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

from lm.models import shards
from lm.models.attention.mask import Mask
from lm.models.config import ConfigError

QUERIES = ("batch", "attention_length", "heads", "head_dim")
KEYS = ("batch", "attention_length", "kv_heads", "head_dim")


def local(kernel: Callable[..., jax.Array], q_BTHK, k_BSJK, v_BSJK, mask: Mask) -> jax.Array:
    """Compute kernel(q, k, v, mask) [B, T, H, K] under the mesh and rules in force.

    Raises ConfigError when the rules split rows, which a kernel needs whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(shards.automatic().values()) == 1:  # a mesh of one device, or inside `ring`
        return kernel(q_BTHK, k_BSJK, v_BSJK, mask)
    of_q, of_k = (PartitionSpec(*(nn.logical_to_mesh_axes(x) or ())) for x in (QUERIES, KEYS))
    batch, length, *_ = of_q
    axes = (length,) if isinstance(length, str) else length or ()
    if math.prod(mesh.shape[axis] for axis in axes) > 1:
        raise ConfigError(
            f"a row is split over mesh.{' x mesh.'.join(axes)}, and this kernel needs whole rows"
        )
    row = PartitionSpec(batch)
    of_mask = dataclasses.replace(
        mask,
        q_segments=row,
        k_segments=row,
        q_index=PartitionSpec(),
        k_index=PartitionSpec(),
        prefix=None if mask.prefix is None else row,
        window=mask.window if isinstance(mask.window, int) else PartitionSpec(),
    )
    whole = jax.shard_map(
        kernel, mesh=mesh, in_specs=(of_q, of_k, of_k, of_mask), out_specs=of_q, check_vma=False
    )
    return whole(q_BTHK, k_BSJK, v_BSJK, mask)
