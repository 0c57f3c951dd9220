"""Run an attention kernel on each device's own rows and heads.

The partitioner cannot split a kernel, and attention needs no rows or heads of other devices.
"""

import dataclasses
import math
from collections.abc import Callable

import jax

from lm.models import shards
from lm.models.attention.mask import Mask
from lm.models.config import ConfigError
from lm.models.shards import mesh_axes, spec


def local(kernel: Callable[..., jax.Array], q_BTHK, k_BSJK, v_BSJK, mask: Mask) -> jax.Array:
    """Compute kernel(q, k, v, mask) [B, T, H, K] under the mesh and rules in force.

    Raises ConfigError when the rules split rows, which a kernel needs whole.
    """
    if math.prod(shards.automatic().values()) == 1:  # a mesh of one device, or inside `ring`
        return kernel(q_BTHK, k_BSJK, v_BSJK, mask)
    batch, length, heads = (
        mesh_axes(name, size)
        for name, size in zip(("batch", "attention_length", "heads"), q_BTHK.shape[:3], strict=True)
    )
    if length:
        raise ConfigError(
            f"a row is split over mesh.{' x mesh.'.join(length)}, and this kernel needs whole rows"
        )
    if heads != mesh_axes("kv_heads", k_BSJK.shape[2]):
        heads = ()
    row, of_x = spec(batch), spec(batch, (), heads)
    of_mask = dataclasses.replace(
        mask,
        q_segments=row,
        k_segments=row,
        q_index=spec(),
        k_index=spec(),
        prefix=None if mask.prefix is None else row,
        window=mask.window if isinstance(mask.window, int) else spec(),
    )
    return shards.mapped(kernel, (of_x, of_x, of_x, of_mask), of_x)(q_BTHK, k_BSJK, v_BSJK, mask)
