"""Averages of weights: WiSE-FT between a base and its tuned model, and model soups."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from lm.distributed.rules import by_path
from lm.models.config import ConfigError


def interpolate(base: dict, tuned: dict, alpha: float) -> dict:
    """Compute (1 - alpha) * base + alpha * tuned (Wortsman et al. 2022, WiSE-FT, section 2).

    The sum is in float32, the result in the base's dtypes. alpha 0 and 1 give base and tuned bit
    for bit. Raises ConfigError for different architectures.
    """
    check_same([base, tuned], ["the base", "the tuned model"])
    if alpha in (0, 1):
        return jax.tree.map(lambda b, t: jnp.asarray(t if alpha else b, b.dtype), base, tuned)
    mix = lambda b, t: ((1 - alpha) * b.astype(jnp.float32) + alpha * t.astype(jnp.float32)).astype(
        b.dtype
    )
    return jax.tree.map(mix, base, tuned)


def soup(models: Sequence[dict]) -> dict:
    """Uniform mean of several models' weights (Wortsman et al. 2022, Model soups)."""
    check_same(models, [f"model {number}" for number in range(1, len(models) + 1)])
    return jax.tree.map(
        lambda *ws: (sum(w.astype(jnp.float32) for w in ws) / len(ws)).astype(ws[0].dtype), *models
    )


def greedy_soup(models: Sequence[dict], loss: Callable[[dict], float]) -> tuple[dict, list[int]]:
    """Return a greedy soup and the indices of its models (Wortsman et al. 2022, recipe 1).

    Start with the best model by `loss`, then add each next best that does not make the loss worse.
    """
    losses = [loss(model) for model in models]
    order = sorted(range(len(models)), key=lambda i: losses[i])
    kept, best = order[:1], losses[order[0]]
    for candidate in order[1:]:
        tried = loss(soup([models[i] for i in (*kept, candidate)]))
        if tried <= best:
            kept, best = [*kept, candidate], tried
    return soup([models[i] for i in kept]), kept


def check_same(models: Sequence[dict], names: Sequence[str]) -> None:
    """Raise ConfigError, naming a difference, unless the models have the same parameters."""
    shapes = [{path: tuple(x.shape) for path, x in by_path(model).items()} for model in models]
    for found, name in zip(shapes[1:], names[1:], strict=True):
        if differ := sorted(
            path
            for path in found.keys() | shapes[0].keys()
            if found.get(path) != shapes[0].get(path)
        ):
            path = differ[0]
            raise ConfigError(
                f"{names[0]} and {name} are not of one architecture: {len(differ)} parameters "
                f"differ, such as {path} ({shapes[0].get(path)} and {found.get(path)})"
            )
