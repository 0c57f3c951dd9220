"""TrainState: all arrays that a step reads and writes, created sharded."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lm.adaptation.plan import Plan
from lm.batch import Batch
from lm.distributed import rules, sharding
from lm.distributed.rules import RATES, Table, by_path
from lm.distributed.sharding import ACTIVATIONS, PARAMETERS, Rules, path_name
from lm.training import auxiliary, guard
from lm.training.auxiliary import MODELS, Made, main_of


@flax.struct.dataclass
class TrainState:
    """State of training.

    step: int32 scalar, updates done. params: nested dict of the model. opt_state: optax's.
    rng: uint32 key data, never changed.
    Optional, None if not used:
    ema: float32 moving average of the trained params. guard: state of spike detection. fixed:
    constant arrays (see lm.adaptation.plan and lm.training.auxiliary); params may then be adapters
    instead of the model's.
    """

    step: Any
    params: Any
    opt_state: Any
    rng: Any
    ema: Any = None
    guard: Any = None
    fixed: Any = None


@dataclasses.dataclass(frozen=True)
class Extras:
    """Optional parts of a state.

    rates: see `rules`; a parameter with the rate 0 has no moving average. plan: adaptation of the
    model, or None. models: auxiliary models by name.
    """

    ema: bool = False
    guard: bool = False
    rates: Table = RATES
    plan: Plan | None = None
    models: Mapping[str, Made] = dataclasses.field(default_factory=dict)

    def axes(self, model) -> tuple[dict, dict]:
        """Logical axis names of the trained params and of the fixed ones."""
        own = model.logical_axes()
        trained, fixed = auxiliary.axes(self.models, own)
        if self.plan is None:
            return own | trained, fixed
        return self.plan.trained_axes() | trained, self.plan.fixed_axes() | fixed


def drawn(model, seed: int | jax.Array, rows: int = 1) -> dict:
    """Draw the params of the model from `seed`, as a pure function.

    rows: of the example batch, a multiple of the mesh's size.
    """
    params_key, _ = jax.random.split(jax.random.key(seed))
    return model.init(params_key, Batch.of(np.zeros((rows, 2), np.int32)))["params"]


@functools.lru_cache(maxsize=16)
def _drawing(model, rows: int, tree, shardings: tuple):
    """Jitted `drawn`, with these leaves of a tree of shardings; compiled once a process."""
    placed = jax.tree.unflatten(tree, shardings)
    return jax.jit(lambda seed: drawn(model, seed, rows), out_shardings=placed)


def start(
    params,
    optimizer: optax.GradientTransformation,
    seed: int | jax.Array,
    extras: Extras = Extras(),
    fisher: dict | None = None,
    given: Mapping[str, dict] = types.MappingProxyType({}),
    rows: int = 1,
) -> TrainState:
    """State that starts from `params`, as a pure function. fisher: for a plan that needs it.

    given: loaded weights of auxiliary models. rows: see `drawn`.
    """
    params_key, rng = jax.random.split(jax.random.key(seed))
    fixed, base = None, params
    if extras.plan is not None:
        params, fixed = extras.plan.start(params, jax.random.fold_in(params_key, 1), fisher)
    if extras.models:
        key = jax.random.fold_in(params_key, 2)
        trained, held = auxiliary.start(extras.models, base, given, key, rows)
        params, fixed = params | trained, (fixed or {}) | held or None
    trained = rules.split(params, extras.rates)[0]
    return TrainState(
        jnp.int32(0),
        params,
        optimizer.init(params),
        jax.random.key_data(rng),
        ema=jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), trained)
        if extras.ema
        else None,
        guard=guard.start() if extras.guard else None,
        fixed=fixed,
    )


def abstract_state(
    model, optimizer, mesh: Mesh, rules: Rules = PARAMETERS, extras: Extras = Extras()
) -> TrainState:
    """ShapeDtypeStructs of the state, sharded on `mesh`. Raises ConfigError for unfit rules."""
    # Arrays made inside are valid under any mesh, unlike arguments without a sharding.
    empty = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.shapes())
    shapes = jax.eval_shape(lambda: start(empty(), optimizer, 0, extras))
    axes, fixed_axes = extras.axes(model)
    of_params = sharding.parameter_shardings(mesh, axes, shapes.params, rules)
    shardings = _like_params(shapes, of_params, sharding.replicated(mesh))
    if fixed_axes:
        fixed = sharding.parameter_shardings(mesh, fixed_axes, shapes.fixed, rules)
        shardings = dataclasses.replace(shardings, fixed=fixed)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def create_state(
    model,
    optimizer,
    mesh: Mesh,
    seed: int,
    *,
    params=None,
    rules: Rules = PARAMETERS,
    activations: Rules = ACTIVATIONS,
    extras: Extras = Extras(),
    fisher: dict | None = None,
    given: Mapping[str, dict] = types.MappingProxyType({}),
) -> TrainState:
    """State on the mesh, drawn from `seed` shard by shard, or starting from `params`.

    The numbers are the same on every mesh. given: loaded weights of auxiliary models.
    """
    abstract = abstract_state(model, optimizer, mesh, rules, extras)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    put = lambda tree, like: jax.tree.map(
        lambda p, a: jax.device_put(jnp.asarray(p, a.dtype), a.sharding), tree, like
    )
    several = extras.plan is not None or extras.models
    own = main_of(abstract.params if extras.plan is None else abstract.fixed["base"])
    with sharding.activate(mesh, activations):
        donated = ()
        if params is None:
            leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, own))
            params = _drawing(model, mesh.size, tree, tuple(leaves))(seed)
            donated = (0,) if several else ()
        else:
            params = put(params, own)
        if several:
            fisher = None if fisher is None else put(fisher, abstract.fixed["fisher"])
            places: dict = {
                **(abstract.fixed or {}).get(MODELS, {}),
                **abstract.params.get(MODELS, {}),
            }
            given = {name: put(tree, places[name]) for name, tree in given.items()}
            return jax.jit(
                lambda p, seed, *more: start(p, optimizer, seed, extras, *more, mesh.size),
                out_shardings=shardings,
                donate_argnums=donated,
            )(params, seed, fisher, given)
        rest = jax.jit(
            lambda p, seed: dataclasses.replace(start(p, optimizer, seed, extras), params=()),
            out_shardings=dataclasses.replace(shardings, params=()),
        )(params, seed)
    return dataclasses.replace(rest, params=params)


def _like_params(tree, shardings, otherwise):
    """Sharding of every array in a tree.

    An array whose path contains a parameter's path, and that has its shape, is sharded like the
    parameter: moments and averages. Others, such as factored moments, get `otherwise`.
    """
    of, shapes = by_path(shardings), {name: x.shape for name, x in by_path(tree.params).items()}

    def one(path, leaf):
        parts = path_name(path).split("/")
        spans = (
            parts[i:j]
            for width in range(len(parts), 0, -1)
            for i in range(len(parts) - width + 1)
            for j in [i + width]
        )
        name = next((name for name in map("/".join, spans) if name in of), None)
        return of[name] if name is not None and shapes[name] == leaf.shape else otherwise

    return jax.tree_util.tree_map_with_path(one, tree)
