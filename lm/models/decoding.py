"""Parameters in the layout that decoding reads fastest.

On a CPU, a product of 4 to 64 tokens with a matrix is up to 1.5 times as fast if the numbers of
each output lie together: the library would otherwise rearrange the matrix at every step. Such a
matrix NAME, with its outputs first, is held as NAME_by_output in its place.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util

from lm.models.matmul import BY_OUTPUT
from lm.models.matrices import matrix
from lm.models.model import LanguageModel, separate

FEW = 4  # rows; with two, float32 products are slower by output, narrower ones faster


def for_decoding(model: LanguageModel, params: dict, rows: int = FEW) -> tuple[LanguageModel, dict]:
    """Split stacked layers as `lm.separate` does; on a CPU, also store their matrices by output.

    rows: of a batch; in float32, fewer than four are decoded with the matrices as they are.

    It takes one copy of the layers: when generating often, do it once and pass the result. Such
    parameters are for reading a model, not for training or saving it. Those whose layers were
    apart stay as they are.
    """
    apart, split = separate(model, params)
    few = rows < FEW and jnp.dtype(model.config.dtype).itemsize >= 4
    if split is params or few or jax.default_backend() != "cpu":
        return apart, split
    axes = traverse_util.flatten_dict(apart.logical_axes(), sep="/")
    found = {}
    for path, x in traverse_util.flatten_dict(split, sep="/").items():
        sides = matrix(path, axes[path]) if path in axes and "layers_" in path else None
        if sides is None:  # not a matrix of a layer, or the scales of an int8 one
            found[path] = x
        else:
            found[path + BY_OUTPUT] = jnp.moveaxis(x, sides.inputs, range(-len(sides.inputs), 0))
    return apart, traverse_util.unflatten_dict(found, sep="/")
