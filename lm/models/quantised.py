"""int8 weights with a float32 scale for every output channel, for decoding and evaluation.

A quantised matrix NAME is an int8 array in the place of the float one, beside NAME_scale.
"""

import re

import jax
import jax.numpy as jnp
from flax import traverse_util

from lm.models.config import LM_HEADS
from lm.models.matmul import SCALE
from lm.models.matrices import matrix

# Matrices that stay as they are: small ones that a state-space layer's step size and gates depend
# on, and those that are not applied by `matmul`.
KEPT = r"(^|/)(dt_up|dt_down|bc|projection|classifier)$"
LARGEST = 127


def quantise(model, params: dict) -> dict:
    """Round the matrices of a model's params to int8, the output table included.

    The token table that is looked up stays; a tied model gets an int8 copy of it as its output
    table. Vectors, convolutions and other tables stay too. Activations are in the model's dtype;
    bfloat16 ones are rounded in products on a CPU (`lm.models.matmul.weighted`).
    """
    c = model.config
    axes = traverse_util.flatten_dict(model.logical_axes(), sep="/")
    found = {}
    for path, x in traverse_util.flatten_dict(params, sep="/").items():
        sides = None if re.search(KEPT, path) else matrix(path, axes[path])
        found |= {path: x} if sides is None else _channels(path, x, sides.inputs)
    if c.head in LM_HEADS:
        table = found["embeddings/token" if c.tie_embeddings else "head/table"]
        found |= _channels("head/table", table, (1,))
    return traverse_util.unflatten_dict(found, sep="/")


def _channels(path: str, x: jax.Array, inputs: tuple[int, ...]) -> dict[str, jax.Array]:
    """The int8 values and the scales of a matrix; a scale serves all `inputs` of an output."""
    wide = jnp.asarray(x, jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=inputs, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / LARGEST
    values = jnp.round(wide / scale).astype(jnp.int8)
    return {path: values, path + SCALE: jnp.squeeze(scale, inputs)}
