"""LoRA (Hu et al. 2021): train only low-rank updates of frozen kernels, W + (alpha / rank) A B.

The adapters are a nested dict of their own, with two arrays at the path of each adapted kernel:

    {"a": [L, inputs..., rank], "b": [L, rank, outputs...]}

`merge` computes the adapted kernels, so the model needs no change.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp

from lm.distributed.rules import by_path, idle_parts
from lm.models.config import ConfigError
from lm.models.matrices import Matrix, matrix

# all kernels within the layers (Biderman et al. 2024, section 4)
PATTERN = r"(attention|cross|mlp|ssm)/"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Options of LoRA.

    * rank: columns of A.
    * alpha: the product is scaled by alpha / rank; 0 = 2 * rank.
    * pattern: regular expression of the kernels' paths.
    * dropout: share of the inputs hidden from A. Whole kernels are merged, so an input is dropped
      for a whole micro-batch, not per token.
    """

    rank: int
    alpha: float = 0.0
    dropout: float = 0.0
    pattern: str = PATTERN

    @property
    def scale(self) -> float:
        return (self.alpha or 2.0 * self.rank) / self.rank


def kernels(axes: Mapping[str, tuple[str, ...]], pattern: str) -> dict[str, Matrix]:
    """Map the path of each kernel that matches the pattern to its dimensions.

    axes: path -> logical names. Raises ConfigError when none matches.
    """
    matrices = {path: m for path, names in axes.items() if (m := matrix(path, names)) is not None}
    found = {path: m for path, m in matrices.items() if re.search(pattern, path)}
    if not found:
        raise ConfigError(
            f"adaptation.lora.pattern={pattern!r} is in no kernel's path; "
            f"there are {', '.join(matrices)}"
        )
    return found


def check_pattern(axes: Mapping[str, tuple[str, ...]], pattern: str) -> None:
    """Raise ConfigError when the pattern, or one of its alternatives, matches no kernel.

    Alternatives of the default pattern are not checked.
    """
    found = kernels(axes, "")
    kernels(axes, pattern)
    for part in idle_parts(pattern, found) if pattern != PATTERN else ():
        other = next((path for path in axes if re.search(part, path)), None)
        why = (
            f"only in that of {other}, which is looked up or added"
            if other
            else f"there are {', '.join(found)}"
        )
        raise ConfigError(
            f"adaptation.lora.pattern={pattern!r}: {part!r} is in no kernel's path, {why}"
        )


def logical_axes(axes: Mapping[str, tuple[str, ...]], pattern: str) -> dict:
    """Logical axis names of the adapters, as a nested dict like them."""
    flat = {}
    for path, m in kernels(axes, pattern).items():
        name = lambda dimensions, path=path: tuple(axes[path][d] for d in dimensions)
        flat[f"{path}/a"] = (*name(m.stacked), *name(m.inputs), "rank")
        flat[f"{path}/b"] = (*name(m.stacked), "rank", *name(m.outputs))
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def initialise(
    params: dict, axes: Mapping[str, tuple[str, ...]], lora: Lora, key: jax.Array
) -> dict:
    """Draw fresh adapters, float32 whatever the kernels' dtype.

    A is uniform within 1 / sqrt(inputs), as in PEFT. B is zero, so the model is unchanged at first.
    """
    flat, of = {}, by_path(params)
    for path, m in kernels(axes, lora.pattern).items():
        kernel = of[path]
        size = lambda dimensions, shape=kernel.shape: tuple(shape[d] for d in dimensions)
        bound = 1 / math.sqrt(math.prod(size(m.inputs)))
        a = (*size(m.stacked), *size(m.inputs), lora.rank)
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        flat[f"{path}/a"] = jax.random.uniform(own, a, jnp.float32, -bound, bound)
        flat[f"{path}/b"] = jnp.zeros((*size(m.stacked), lora.rank, *size(m.outputs)), jnp.float32)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def merge(
    params: dict,
    adapters: dict,
    scale: float,
    *,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
) -> dict:
    """Return the params with every adapted kernel W replaced by W + scale * A B, in float32.

    Other params are unchanged.
    """
    flat, of = dict(by_path(params)), by_path(adapters)
    for path in sorted({name.rpartition("/")[0] for name in of}):
        w, a, b = flat[path], of[f"{path}/a"], of[f"{path}/b"]
        if dropout and rng is not None:
            own = jax.random.fold_in(rng, zlib.crc32(path.encode()))
            kept = jax.random.bernoulli(own, 1 - dropout, (*a.shape[:-1], 1))
            a = jnp.where(kept, a / (1 - dropout), 0.0)
        flat[path] = (w.astype(jnp.float32) + scale * product(w, a, b)).astype(w.dtype)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def product(kernel, a, b) -> jax.Array:
    """Compute A B in the shape of `kernel`, float32."""
    rank = a.shape[-1]
    stacked = a.ndim + b.ndim - 2 - kernel.ndim  # a and b both have the stacked dimension
    lead = kernel.shape[:stacked]
    a, b = (x.astype(jnp.float32) for x in (a.reshape(*lead, -1, rank), b.reshape(*lead, rank, -1)))
    return jnp.matmul(a, b, precision="highest").reshape(kernel.shape)
