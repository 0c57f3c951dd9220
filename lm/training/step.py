"""One training step: pure, to be jitted with the state donated."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lm.batch import Batch
from lm.objectives.loss import Loss
from lm.training.state import TrainState

Objective = Callable[..., Loss]


def make_train_step(model, objective: Objective, optimizer: optax.GradientTransformation, schedule, *, accumulate: int = 1, shardings=None):
    """A function (state, batch) -> (state, metrics of float32 scalars).

    The gradient is that of sum(loss) / sum(weight) over the whole batch, whatever the number of devices and of micro-batches (`accumulate`,
    which must divide the batch). `shardings`, of the parameters, keeps the gradients sharded as they are.
    """
    dropout = model.config.dropout > 0

    def sums(params, batch: Batch, rng):
        loss = objective(model, params, batch, rng if dropout else None)
        return loss.sum, loss

    def micro(params, batch: Batch, rng):
        (_, loss), gradients = jax.value_and_grad(sums, has_aux=True)(params, batch, rng)
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        return loss, gradients if shardings is None else jax.lax.with_sharding_constraint(gradients, shardings)

    def total(params, batch: Batch, rng):
        if accumulate == 1:
            return micro(params, batch, rng)

        def body(carry, xs):
            return jax.tree.map(jnp.add, carry, micro(params, *xs)), None

        # Micro-batch i is rows i, i + k, ...: each device splits the rows it has, and nothing moves.
        batches = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        rngs = jax.random.split(rng, accumulate)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro, params, jax.tree.map(lambda x: x[0], batches), rng)
        )
        return jax.lax.scan(body, zeros, (batches, rngs))[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        loss, gradients = total(state.params, batch, rng)
        weight = jnp.where(loss.weight > 0, loss.weight, 1.0)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            "loss": loss.sum / weight,
            "weight": loss.weight,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            **{name: value / weight for name, value in loss.metrics.items()},
        }
        state = dataclasses.replace(state, step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)
        return state, metrics

    return train_step
