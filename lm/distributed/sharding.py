"""Sharding rules: logical names of dimensions -> mesh axes, for parameters and for activations.

A name without a rule, or a size that its mesh axes do not divide, raises ConfigError before
compilation. By itself, Flax would silently replicate the first, and XLA would pad or refuse the
second far from the cause.
"""

import contextlib
import math
from collections.abc import Generator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.batch import FIELDS
from lm.models import LanguageModel, layers, shards
from lm.models.config import ConfigError, nearest

Rules = Mapping[str, tuple[str, ...]]

PARAMETERS: Rules = {
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "table_embed": ("fsdp",),  # embedding width of tables, gathered for a lookup
    "pooled": ("tensor",),
    "narrow_embed": (),  # width of a narrower embedding that is projected to the model's width
    "head_dim": (),
    "layers": (),
    "state": (),  # of a state-space layer, as are conv and dt
    "conv": (),
    "dt": (),
    "buckets": (),
    "labels": (),
    "norm": (),
    "positions": (),
    "types": (),
    "rank": (),  # of a low-rank adapter
}
ACTIVATIONS: Rules = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),  # of batch fields, and inside mlp and state-space layers
    "residual_length": ("sequence",),  # of the residual stream between layers
    "residual": (),
    "attention_length": ("sequence",),  # of queries, keys and values
    "embed": (),  # of embedding tables, gathered for use
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "positions": (),
    "types": (),
}


def check_types(rules: Mapping[str, Any], table: str) -> None:
    """Raise ConfigError when a rule is for no logical name, or is not a tuple of names."""
    known = {"parameters": PARAMETERS, "activations": ACTIVATIONS}[table]
    for name, axes in rules.items():
        if name not in known:
            raise ConfigError(
                f"sharding.{table}.{name} is no logical name of {table}{nearest(name, known)}; "
                f"one of {', '.join(known)}"
            )
        if not isinstance(axes, tuple | list) or not all(isinstance(axis, str) for axis in axes):
            such = axes if isinstance(axes, str) else "fsdp"
            raise ConfigError(
                f"sharding.{table}.{name}={axes!r}: expected a tuple of mesh axes, such as "
                f"({such!r},), or () for none"
            )
        if twice := [axis for axis in axes if list(axes).count(axis) > 1]:
            raise ConfigError(
                f"sharding.{table}.{name}={axes!r} names the mesh axis {twice[0]!r} twice"
            )


def check_rules(mesh: Mesh, rules: Rules, table: str) -> None:
    """Raise ConfigError when a rule is not a tuple of names, or names an unknown mesh axis."""
    check_types(rules, table)
    for name, axes in rules.items():
        for axis in axes:
            if axis not in mesh.axis_names:
                raise ConfigError(
                    f"sharding.{table}.{name} names the mesh axis "
                    f"{axis!r}{nearest(axis, mesh.axis_names)}; "
                    f"the mesh has {', '.join(mesh.axis_names)}"
                )


def partition(
    mesh: Mesh, shape: tuple[int, ...], names: tuple[str, ...], rules: Rules, what: str, table: str
) -> NamedSharding:
    """Sharding of an array of `shape` with dimensions called `names`.

    Raises ConfigError that names the array (`what`), the dimension, its size and the mesh axes.
    """
    if len(names) != len(shape):
        raise ConfigError(
            f"{what} has {len(shape)} dimensions {shape} but {len(names)} logical names {names}; "
            "name every dimension"
        )
    spec: list[tuple[str, ...]] = []
    for dimension, (size, name) in enumerate(zip(shape, names, strict=True)):
        if name not in rules:
            raise ConfigError(
                f"{what}: dimension {dimension} (size {size}) is called {name!r}, which no rule "
                f"in sharding.{table} knows"
                f"{nearest(name, rules)}; known: {', '.join(rules)}"
            )
        axes = tuple(rules[name])
        if twice := [axis for axis in axes if any(axis in used for used in spec)]:
            raise ConfigError(
                f"{what}: the mesh axis {twice[0]!r} would shard two dimensions of {names}; "
                f"change a rule in sharding.{table}"
            )
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            raise ConfigError(
                f"{what}: dimension {dimension} ({name!r}, size {size}) does not divide by "
                f"mesh.{' x mesh.'.join(axes)} = {parts}; "
                f"change the mesh, or the size (next that fits: {-(-size // parts) * parts})"
            )
        spec.append(axes)
    return NamedSharding(mesh, PartitionSpec(*(axes or None for axes in spec)))


def parameter_shardings(mesh: Mesh, logical_axes, shapes, rules: Rules = PARAMETERS):
    """Tree of NamedSharding like params. Raises ConfigError.

    logical_axes: `model.logical_axes()`. shapes: tree of arrays or ShapeDtypeStructs.
    """
    check_rules(mesh, rules, "parameters")

    def of(path, leaf, names):
        return partition(
            mesh, leaf.shape, tuple(names), rules, f"parameter {path_name(path)}", "parameters"
        )

    return jax.tree_util.tree_map_with_path(of, shapes, logical_axes)


def placed(mesh: Mesh, model: LanguageModel, params: dict, rules: Rules = PARAMETERS) -> dict:
    """Params on the mesh, in the dtypes of the model. Raises ConfigError."""
    shapes = model.shapes()
    places = parameter_shardings(mesh, model.logical_axes(), shapes, rules)
    put = lambda p, like, place: jax.device_put(jnp.asarray(p, like.dtype), place)
    return jax.tree.map(put, params, shapes, places)


def batch_sharding(mesh: Mesh, shape: tuple[int, int], rules: Rules = ACTIVATIONS) -> NamedSharding:
    """Sharding of every array [B, T] of a batch. Raises ConfigError."""
    check_rules(mesh, rules, "activations")
    return partition(mesh, shape, ("batch", "length"), rules, "the batch", "activations")


def field_sharding(rows: NamedSharding, name: str, ndim: int) -> NamedSharding:
    """The sharding of one batch field with `ndim` axes, from that of arrays [B, T].

    Axes other than `batch` and the lengths of both sides are not split.
    """
    batch, length = (*rows.spec, None, None)[:2]
    split = {"batch": batch, "length": length, "encoder_length": length}
    names = FIELDS[name].names(ndim)
    return NamedSharding(rows.mesh, PartitionSpec(*(split.get(axis) for axis in names)))


def checked_field(rows: NamedSharding, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """`field_sharding`. Raises ConfigError when the mesh does not divide a dimension."""
    placed = field_sharding(rows, name, len(shape))
    names = FIELDS[name].names(len(shape))
    for dimension, size, split in zip(names, shape, placed.spec, strict=False):
        axes = (split,) if isinstance(split, str) else split or ()
        parts = math.prod(placed.mesh.shape[axis] for axis in axes)
        if size % parts:
            raise ConfigError(
                f"the field {name!r} of the batch: {dimension} {size} does not divide by "
                f"mesh.{' x mesh.'.join(axes)} = {parts}; change the mesh, or the size (next that "
                f"fits: {-(-size // parts) * parts})"
            )
    return placed


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with one complete copy per device."""
    return NamedSharding(mesh, PartitionSpec())


@contextlib.contextmanager
def activate(mesh: Mesh, rules: Rules = ACTIVATIONS) -> Generator[None]:
    """Apply the model's logical constraints to `mesh` within the block.

    Do not use `with mesh:`, which would drop the constraints silently.
    """
    with (
        jax.set_mesh(mesh),
        nn.logical_axis_rules([(name, axes or None) for name, axes in rules.items()]),
    ):
        yield


@contextlib.contextmanager
def checked(mesh: Mesh, rules: Rules = ACTIVATIONS) -> Generator[None]:
    """`activate` for tracing: raise ConfigError for an activation that the rules do not fit.

    By themselves, Flax would silently drop a mesh axis that is used twice, and XLA would pad a size
    that does not divide.
    """

    several = {axis for axis, size in mesh.shape.items() if size > 1}

    def check(shape: tuple[int, ...], names: tuple[str, ...]) -> None:
        # Inside `shards.mapped`, the rows are counted as outside, and other axes it takes are not.
        rows = shards.row_axes()
        taken = several - {*rows, *shards.automatic()}
        here = {name: shards.left(axes, taken) for name, axes in rules.items()}
        times = {"batch": shards.parts(rows)}
        shape = tuple(n * times.get(name, 1) for n, name in zip(shape, names, strict=True))
        what = f"an activation [{', '.join(names)}] of shape {list(shape)}"
        partition(mesh, shape, names, here, what, "activations")

    with activate(mesh, rules), layers.checking(check):
        yield


def path_name(path) -> str:
    """Key path as text, such as "layers/mlp/up"."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )
