"""Parts of activations: which mesh axes split a dimension, and functions that see one part each."""

import contextvars
import math
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

Axes = tuple[str, ...]

_ROWS: contextvars.ContextVar[Axes] = contextvars.ContextVar("rows", default=())


def mesh_axes(name: str, size: int) -> Axes:
    """Mesh axes that split a dimension called `name`, by the active mesh and rules.

    () if none do: outside a mesh, without a rule, or where their devices do not divide the size.
    """
    sizes = automatic()
    found = next((axes for rule, axes in nn.get_logical_axis_rules() if rule == name), None) or ()
    axes = tuple(axis for axis in found if sizes.get(axis, 1) > 1)
    return axes if size % parts(axes) == 0 else ()


def batch_axes(shape: tuple[int, ...]) -> tuple[Axes, Axes]:
    """Mesh axes that split the rows, and those that split the length, of an array [B, T, ...]."""
    return mesh_axes("batch", shape[0]), mesh_axes("length", shape[1])


def parts(axes: Axes) -> int:
    """Number of parts that these axes of the active mesh make, inside `mapped` too."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in axes)


def automatic() -> dict[str, int]:
    """Sizes of the active mesh's axes, without those that an outer `shard_map` has taken."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def left(axes: Axes | str | None, taken: Collection[str] | None = None) -> Axes:
    """Mesh axes of one dimension without those `taken`, by default by an outer `mapped`."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    here = automatic()
    keep = lambda axis: axis in here if taken is None else axis not in taken
    return tuple(filter(keep, axes))


def single() -> Axes:
    """Mesh axes of one device, without those that an outer `shard_map` has taken."""
    return tuple(axis for axis, size in automatic().items() if size == 1)


def of_each(first: Axes, *others: Axes) -> PartitionSpec:
    """The PartitionSpec of dimensions that are split over these mesh axes each, in `mapped`.

    It names the axes of one device too, over which `mapped` would else add up the gradient.
    """
    return spec((*first, *single()), *others)


def spec(*axes: Axes) -> PartitionSpec:
    """The PartitionSpec of dimensions that are split over these mesh axes each."""
    return PartitionSpec(*(each or None for each in axes))


def mapped(
    function: Callable[..., Any], in_specs: Any, out_specs: Any, axes: Collection[str] | None = None
) -> Callable[..., Any]:
    """`function` of one device's part of each array, by `jax.shard_map` over the active mesh.

    axes: mesh axes that make the parts; None = all. XLA still splits the work over the others, and
    inside, the rules of activations name only those.
    """
    sizes = automatic()
    # An axis of one device is taken too: then XLA often has no axis left to split over.
    taken = {axis for axis, size in sizes.items() if axes is None or axis in axes or size == 1}
    every = nn.get_logical_axis_rules()
    rules = [(name, left(found, taken) or None) for name, found in every]
    batch = dict(every).get("batch") or ()
    rows = (*row_axes(), *(axis for axis in batch if axis in taken and sizes[axis] > 1))

    def inside(*arguments):
        token = _ROWS.set(rows)
        try:
            with nn.logical_axis_rules(rules):
                return function(*arguments)
        finally:
            _ROWS.reset(token)

    return jax.jit(  # outside jit, shard_map takes only all axes
        jax.shard_map(
            inside,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=taken,
            check_vma=False,  # models need not say what varies over which axis
        )
    )


def row_axes() -> Axes:
    """Mesh axes that split the rows of a batch and that an outer `mapped` has taken."""
    return _ROWS.get()


def row_keys(key: jax.Array, count: int) -> jax.Array:
    """A random key for each of `count` rows; a row of a batch has the same one on any mesh.

    Inside `mapped` too, if it splits the rows.
    """
    axes = row_axes()
    first = jax.lax.axis_index(axes) * count if axes else 0
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def moved(x: Any, axes: Axes, by: int, around: bool = True) -> Any:
    """Send a tree of arrays to the device `by` parts further; inside `mapped`.

    around: the last parts go to the first devices. Else these get zeros.
    """
    count = parts(axes)
    if by % count == 0 and around:
        return x
    to = [(i, (i + by) % count) for i in range(count) if around or 0 <= i + by < count]
    return jax.tree.map(lambda each: jax.lax.ppermute(each, axes, to), x)
