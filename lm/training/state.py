"""TrainState: everything a step reads and writes, sharded from birth."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lm.batch import Batch
from lm.training import sharding
from lm.training.sharding import ACTIVATIONS, PARAMETERS, Rules


@flax.struct.dataclass
class TrainState:
    """step: int32 scalar, updates done.   params: the model's dict.   opt_state: optax's.   rng: uint32 key data, never changed."""

    step: Any
    params: Any
    opt_state: Any
    rng: Any


def initialise(model, optimizer: optax.GradientTransformation, seed: int | jax.Array, rows: int = 1) -> TrainState:
    """A fresh state, pure. `rows`: of the example batch, for a mesh that divides it."""
    params_key, rng = jax.random.split(jax.random.key(seed))
    params = model.init(params_key, Batch.of(np.zeros((rows, 2), np.int32)))["params"]
    return TrainState(jnp.int32(0), params, optimizer.init(params), jax.random.key_data(rng))


def abstract_state(model, optimizer, mesh: Mesh, rules: Rules = PARAMETERS) -> TrainState:
    """The shapes, dtypes and shardings of the state on `mesh`: ShapeDtypeStructs. Raises ConfigError where the rules do not fit."""
    shapes = jax.eval_shape(lambda: initialise(model, optimizer, 0))
    of_params = sharding.parameter_shardings(mesh, model.logical_axes(), shapes.params, rules)
    everywhere = sharding.replicated(mesh)
    of_optimizer = optax.tree_utils.tree_map_params(
        optimizer, lambda _, s: s, shapes.opt_state, of_params, transform_non_params=lambda _: everywhere
    )
    shardings = TrainState(everywhere, of_params, of_optimizer, everywhere)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def create_state(model, optimizer, mesh: Mesh, seed: int, *, params=None, rules: Rules = PARAMETERS, activations: Rules = ACTIVATIONS):
    """A state on the mesh, drawn from `seed` shard by shard, or starting from `params`. The same numbers on every mesh."""
    abstract = abstract_state(model, optimizer, mesh, rules)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    with sharding.activate(mesh, activations):
        if params is None:
            return jax.jit(lambda s: initialise(model, optimizer, s, mesh.size), out_shardings=shardings)(seed)
        params = jax.tree.map(lambda p, a: jax.device_put(jnp.asarray(p, a.dtype), a.sharding), params, abstract.params)
        rest = jax.jit(
            lambda p, s: TrainState(jnp.int32(0), (), optimizer.init(p), jax.random.key_data(jax.random.split(jax.random.key(s))[1])),
            out_shardings=dataclasses.replace(shardings, params=()),
        )(params, seed)
    return dataclasses.replace(rest, params=params)
