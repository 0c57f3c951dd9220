"""Transformations per matrix: Muon, and Adafactor layer by layer. The arithmetic is optax's."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
import optax.contrib

from lm.distributed.sharding import path_name
from lm.models.matrices import Matrix, matrix

Axes = Mapping[str, tuple[str, ...]]  # parameter's path -> logical names of its dimensions

NOT_MUON = r"(^|/)(embeddings|head|pooler)/"  # first and last layer use AdamW (Jordan et al. 2024)
# RMS of an update, as for AdamW, so that one learning rate and weight decay serve both (Liu et al.
# 2025, section 2.2).
RMS = 0.2


def muon_matrix(path: str, axes: Axes) -> Matrix | None:
    """Matrix at `path` that Muon orthogonalises; None if AdamW is used."""
    return None if re.search(NOT_MUON, path) else matrix(path, axes[path])


def scale_by_muon(
    axes: Axes, momentum: float, nesterov: bool = True
) -> optax.GradientTransformation:
    """Orthogonalised momentum (Jordan et al. 2024) for parameters that are all matrices.

    Every layer and projection is a separate matrix. Each update has the root mean square RMS,
    whatever the matrix's shape.
    """

    def dimensions(params):
        def of(path, _):
            m = muon_matrix(path_name(path), axes)
            assert m is not None
            return optax.contrib.MuonDimensionNumbers(
                m.inputs, m.outputs
            )  # the other dimensions are batch dimensions

        return jax.tree_util.tree_map_with_path(of, params)

    def scaled(path, update):
        m = muon_matrix(path_name(path), axes)
        assert m is not None
        return RMS * math.sqrt(max(_size(update, m.inputs), _size(update, m.outputs))) * update

    return optax.chain(
        optax.contrib.scale_by_muon(
            beta=momentum,
            mu_dtype=jnp.float32,
            nesterov=nesterov,
            weight_dimension_numbers=dimensions,
        ),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates)),
    )


def grouped(
    choose: Callable[[str], str], parts: Mapping[str, optax.GradientTransformation]
) -> optax.GradientTransformation:
    """Apply the transformation that `choose` names for a path. State: {name: its state}."""

    def divided(tree):
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        groups: dict[str, dict] = {name: {} for name in parts}
        for path, x in flat.items():
            groups[choose(path)][path] = x
        return {
            name: flax.traverse_util.unflatten_dict(group, sep="/")
            for name, group in groups.items()
        }

    def init(params):
        return {name: parts[name].init(group) for name, group in divided(params).items()}

    def update(updates, state, params=None):
        mine = {name: None for name in parts} if params is None else divided(params)
        done = {
            name: parts[name].update(group, state[name], mine[name])
            for name, group in divided(updates).items()
        }
        flat: dict[str, Any] = {}
        for new, _ in done.values():
            flat |= flax.traverse_util.flatten_dict(new, sep="/")
        return flax.traverse_util.unflatten_dict(flat, sep="/"), {
            name: new_state for name, (_, new_state) in done.items()
        }

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class _Done:
    update: Any
    state: Any


def each_matrix(part: optax.GradientTransformation, axes: Axes) -> optax.GradientTransformation:
    """Apply `part` to every parameter separately. State: a tree of its states.

    A matrix is passed as [inputs, outputs], and layers one by one.
    """

    def view(path, x):
        """(the parameter in the shape that `part` gets, whether it is a stack of layers)."""
        name = path_name(path)
        m, stacked = matrix(name, axes[name]), "layers" in axes[name]
        if m is None:
            return x, stacked
        shape = (
            *(x.shape[d] for d in m.stacked),
            *(_size(x, side) for side in (m.inputs, m.outputs)),
        )
        return x.reshape(shape), stacked  # the dimensions are already in this order

    def init(params):
        def one(path, p):
            p, stacked = view(path, p)
            return jax.vmap(part.init)(p) if stacked else part.init(p)

        return jax.tree_util.tree_map_with_path(one, params)

    def update(updates, state, params=None):
        def one(path, u, s, p):
            (flat, stacked), (p, _) = view(path, u), view(path, p)
            done: Any = (jax.vmap(part.update) if stacked else part.update)(flat, s, p)
            return _Done(done[0].reshape(u.shape), done[1])

        done = jax.tree_util.tree_map_with_path(one, updates, state, params)
        return jax.tree.map(lambda d: d.update, done), jax.tree.map(lambda d: d.state, done)

    return optax.GradientTransformation(init, update)


def _size(x, dimensions) -> int:
    return math.prod(x.shape[d] for d in dimensions)
