"""Training step: a pure function, to be jitted with the state donated."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from lm.batch import Batch
from lm.distributed import rules
from lm.distributed.rules import RATES, Table
from lm.losses import Loss, Term
from lm.models import shards, tied
from lm.models.config import ConfigError
from lm.training import guard, narrow
from lm.training.state import TrainState

LossFunction = Callable[..., Loss]
# With micro-batches, gradients of parameters that are split over devices with other rows are
# reduced once a step, where each device holds whole parameters and gradients (ZeRO-1, Rajbhandari
# et al. 2020), or after every micro-batch, where it holds its part.
REDUCE = ("step", "micro_batch")


def make_train_step(
    model,
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule,
    *,
    accumulate: int = 1,
    shardings=None,
    rates: Table = RATES,
    ema: float = 0.0,
    skip_above: float = 0.0,
    noisy: bool | None = None,
    by_row: bool = True,
    reduce: str = "step",
    weights: Callable[[Any], Mapping[str, jax.Array]] | None = None,
    coefficients: Mapping[str, float] | None = None,
):
    """Return a function (state, batch) -> (state, metrics as float32 scalars).

    The gradient is that of sum(loss) / sum(weight) over the whole batch, independent of the number
    of devices and of micro-batches. The loss of several terms is the sum over these of coefficient
    * sum / weight.

    accumulate: micro-batches; must divide the batch. The devices that split it add up gradients of
    their own rows and reduce them once, after the last (see `_replicas`).
    shardings: of the parameters; the gradients are sharded likewise. None: XLA decides.
    rates: parameters with the rate 0 have no gradient.
    ema: decay of the moving average of the float32 masters or else the parameters, if the
    state has one.
    skip_above: see `guard.judge`, if the state has a guard.
    noisy: whether the loss uses random numbers; None = if the model has dropout.
    by_row: devices may compute the loss for their own rows; see `lm.tasks.Task`.
    reduce: one of REDUCE; see there.
    weights, coefficients: of a loss of several terms (`lm.tasks.Task`); None = one term.
    `state.fixed`, if set, is passed to the loss function as `fixed=`.
    """
    factors = dict(coefficients or {})
    dropout = model.config.dropout > 0 if noisy is None else noisy

    def sums(trained, held, batch: Batch, rng):
        (frozen, fixed), of_terms = held
        options = {} if fixed is None else {"fixed": fixed}
        params = rules.join(trained, frozen)
        tables = _tables(trained, shardings) if reduce == "step" else []
        with tied.copied(tables, _splits(batch)):
            loss = loss_function(model, params, batch, rng if dropout else None, **options)
        if not of_terms and len(loss.terms) == 1 and not factors:
            return loss.first.sum, loss
        _check_terms(loss, of_terms, factors)
        whole = {name: Term(term.sum, of_terms[name]) for name, term in loss.terms.items()}
        return _total(whole, factors), loss

    def micro(places, trained, held, batch: Batch, rng):
        (_, loss), gradients = jax.value_and_grad(sums, has_aux=True)(trained, held, batch, rng)
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
        return loss, (
            gradients if places is None else jax.lax.with_sharding_constraint(gradients, places)
        )

    def total(trained, held, batch: Batch, rng):
        if shardings is None:
            return accumulated(None, trained, held, batch, rng)
        places = rules.split(shardings, rates)[0]
        axes = _replicas(batch, shardings, accumulate, reduce) if by_row else ()
        if not axes:
            return accumulated(places, trained, held, batch, rng)
        others = shards.left(tuple(shards.automatic()), axes)
        without = lambda taken: jax.tree.map(
            lambda place: shards.spec(*(shards.left(part, taken) for part in place.spec)), places
        )
        ours = without(others)

        def of_replica(*xs):
            left = without(None)
            loss, gradients = accumulated(left, *xs)
            reduced = lambda tree: jax.tree.map(functools.partial(_reduced, axes), tree, ours)
            if shards.automatic():  # along these, XLA would gather what is reduced and scattered
                reduced = shards.mapped(reduced, (left,), left)
            return jax.lax.psum(loss, axes), reduced(gradients)

        whole, rows = shards.spec(), shards.spec(axes)
        run = shards.mapped(of_replica, (whole, whole, rows, whole), (whole, ours), axes)
        return run(trained, held, batch, rng)

    def accumulated(places, trained, held, batch: Batch, rng):
        of_micro = functools.partial(micro, places)
        if accumulate == 1:
            return of_micro(trained, held, batch, rng)

        def body(carry, xs):
            return jax.tree.map(jnp.add, carry, of_micro(trained, held, *xs)), None

        # Micro-batch i has rows i, i + k, ..., so each device splits its own rows.
        batches = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        rngs = jax.random.split(rng, accumulate)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(of_micro, trained, held, jax.tree.map(lambda x: x[0], batches), rng),
        )
        return jax.lax.scan(body, zeros, (batches, rngs))[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        trained, frozen = rules.split(state.params, rates)
        of_terms = {} if weights is None else dict(weights(batch))
        loss, gradients = total(trained, ((frozen, state.fixed), of_terms), batch, rng)
        weight = jnp.where(loss.first.weight > 0, loss.first.weight, 1.0)
        if not of_terms:
            share = 1 / weight  # XLA fuses a product into its readers, and not a quotient
            gradients = jax.tree.map(lambda g: g * share, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        applied = state.step if state.guard is None else state.step - state.guard.skipped
        metrics = {
            **_values(loss, factors, weight),
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(schedule(applied), jnp.float32),
            **{
                name: _mean(found) if isinstance(found, Term) else found / weight
                for name, found in loss.metrics.items()
            },
        }
        following = state.step + 1
        trained: Any = optax.apply_updates(trained, updates)
        average = state.ema
        if average is not None:
            average = _averaged(average, narrow.exact(trained, opt_state), applied, ema)
        guarded = state.guard
        if guarded is not None:
            guarded, take = guard.judge(
                guarded, metrics["loss"], metrics["gradient_norm"], skip_above
            )
            before = (rules.split(state.params, rates)[0], state.opt_state, state.ema)
            choose = lambda new, old: jnp.where(take, new, old)
            trained, opt_state, average = jax.tree.map(
                choose, (trained, opt_state, average), before
            )
            metrics |= {
                "skipped": guarded.skipped.astype(jnp.float32),
                "nonfinite_in_a_row": guarded.nonfinite.astype(jnp.float32),
            }
        state = TrainState(
            following,
            rules.join(trained, frozen),
            opt_state,
            state.rng,
            average,
            guarded,
            state.fixed,
        )
        return state, metrics

    return train_step


def _tables(trained: dict, shardings) -> list[tuple[jax.Array, PartitionSpec]]:
    """The trained token tables, which may have several uses, and how each is split."""
    places = {} if shardings is None else rules.by_path(shardings)
    tables = [name for name in rules.by_path(trained) if name.endswith("embeddings/token")]
    return [(rules.by_path(trained)[name], places[name].spec) for name in tables if name in places]


def _splits(batch) -> tuple[str, ...]:
    """Mesh axes that split the rows and the length of a batch, () where rows are not split."""
    rows = {shards.mesh_axes("batch", len(x)) for x in jax.tree.leaves(batch)}
    return (*rows.pop(), *shards.mesh_axes("length", 0)) if len(rows) == 1 else ()


def _replicas(batch, shardings, accumulate: int, reduce: str) -> tuple[str, ...]:
    """Mesh axes whose devices each add up gradients of their own rows, before one reduction.

    These are the axes that split a micro-batch. () where parameters are split over them and need
    not be whole: without micro-batches, or with reduce="micro_batch". batch: any tree of arrays
    [B, ...].
    """
    axes = {shards.mesh_axes("batch", len(x) // accumulate) for x in jax.tree.leaves(batch)}
    of_parameters = {
        axis
        for place in jax.tree.leaves(shardings)
        for part in place.spec
        for axis in shards.left(part)
    }
    whole = reduce == "step" and accumulate > 1
    found = axes.pop()
    return found if not axes and (whole or not of_parameters & {*found}) else ()


def _reduced(axes: tuple[str, ...], gradient: jax.Array, place) -> jax.Array:
    """Sum over the devices of `axes`, of which each keeps the part that `place` gives it."""
    parts = [shards.left(part, ()) for part in place]
    for dimension, part in enumerate(parts):
        if part:
            gradient = jax.lax.psum_scatter(gradient, part, scatter_dimension=dimension, tiled=True)
    rest = shards.left(axes, sum(parts, ()))
    return jax.lax.psum(gradient, rest) if rest else gradient


def _mean(term: Term) -> jax.Array:
    return term.sum / jnp.where(term.weight > 0, term.weight, 1.0)


def _total(terms: Mapping[str, Term], factors: Mapping[str, float]) -> jax.Array:
    """Sum of coefficient * sum / weight."""
    return jnp.sum(
        jnp.stack([factors.get(name, 1.0) * _mean(term) for name, term in terms.items()])
    )


def _values(loss: Loss, factors: Mapping[str, float], weight: jax.Array) -> dict[str, jax.Array]:
    """The loss and its weight; of several terms also each term's mean, as loss/NAME."""
    if not factors and len(loss.terms) == 1:
        return {"loss": loss.first.sum / weight, "weight": loss.first.weight}
    of_all = jnp.sum(jnp.stack([term.weight for term in loss.terms.values()]))
    means = {f"loss/{name}": _mean(term) for name, term in loss.terms.items()}
    return {"loss": _total(loss.terms, factors), "weight": of_all} | means


def _check_terms(loss: Loss, weights: Mapping, factors: Mapping) -> None:
    """Raise ConfigError unless every term has a weight, and every coefficient a term."""
    if loss.terms.keys() != weights.keys() or not factors.keys() <= loss.terms.keys():
        raise ConfigError(
            f"the loss has the terms {', '.join(loss.terms)}; `weights` gives "
            f"{', '.join(weights) or 'none'} and `coefficients` {', '.join(factors) or 'none'}: "
            "expected a weight of each term, and coefficients of terms alone"
        )


def _averaged(average, params, updates_done, decay: float):
    """Polyak average. The decay is at most (1 + n) / (10 + n), so that early weights fade fast."""
    n = updates_done.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p.astype(jnp.float32), average, params)
