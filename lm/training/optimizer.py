"""Optimizers by name, with global norm clipping, decoupled weight decay and parameter rules."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.distributed import rules
from lm.distributed.rules import DECAY, RATES, Table
from lm.distributed.sharding import path_name
from lm.models.config import ConfigError, nearest
from lm.training import narrow, schedules
from lm.training.muon import Axes, each_matrix, grouped, muon_matrix, scale_by_muon

# Name -> the settings it uses, of those that only some optimizers have.
USES: Mapping[str, tuple[str, ...]] = {
    "adamw": ("b1", "b2", "eps"),
    "adafactor": (),
    "lion": ("b1", "b2"),
    "muon": ("b1", "b2", "eps", "momentum"),
}
DEFAULTS = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "momentum": 0.95}
FINAL = 0.1  # default final learning rate as a share of the peak
FINITE = ("learning_rate", "final", "weight_decay", "clip", "skip_above", "ema", *DEFAULTS)
COUNTS = ("warmup", "cooldown", "skip_nonfinite")
FACTORED = 128  # Adafactor factors second moments only of matrices with sides of at least this size


def build(
    name: str,
    schedule: optax.Schedule,
    axes: Axes,
    *,
    b1: float = DEFAULTS["b1"],
    b2: float = DEFAULTS["b2"],
    eps: float = DEFAULTS["eps"],
    momentum: float = DEFAULTS["momentum"],
    weight_decay: float = 0.1,
    clip: float = 1.0,
    decay: Table = DECAY,
    rates: Table = RATES,
    rounding: str = "master",
) -> optax.GradientTransformation:
    """Optimizer by name: adamw, adafactor, lion or muon.

    Muon uses AdamW for parameters that are not matrices, and for the first and last layer.
    axes: path -> logical names of every parameter. clip: maximum global gradient norm, 0 = off.
    decay, rates: see `rules`. rounding: of parameters narrower than float32, see `narrow.widened`.
    The transformation takes all params, and the gradients of the trained ones. Moments are float32;
    frozen parameters have none.
    """
    core = _CORES[name](axes, dict(b1=b1, b2=b2, eps=eps, momentum=momentum))
    chain = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        core,
        _decayed(weight_decay, decay, rates),
        optax.scale_by_learning_rate(schedule),
    )
    chain = narrow.widened(chain, rounding)
    trained = lambda params: rules.split(params, rates)[0]

    def update(updates, state, params=None):
        return chain.update(updates, state, trained(params))

    return optax.GradientTransformation(lambda params: chain.init(trained(params)), update)


def of_config(
    o: Any, steps: int, axes: Axes
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, schedule) of a config's `optimizer` section."""
    schedule = schedules.schedule(
        o.schedule,
        o.learning_rate,
        schedules.warmup_within(o.warmup, steps),
        steps,
        o.final,
        o.cooldown,
    )
    same = {
        name: o[name] for name in (*DEFAULTS, "weight_decay", "clip", "decay", "rates", "rounding")
    }
    return build(o.name, schedule, axes, **same), schedule


def check(o: Any, steps: int) -> None:
    """Raise ConfigError for an invalid `optimizer` section.

    The message names the field, its value and what was expected.
    """
    for name in FINITE:
        if not math.isfinite(o[name]) or o[name] < 0:
            raise ConfigError(f"optimizer.{name}={o[name]}: expected a finite number, 0 or more")
    for name in COUNTS:
        if o[name] < 0:
            raise ConfigError(f"optimizer.{name}={o[name]}: expected 0 or more")
    if o.learning_rate == 0:
        raise ConfigError(
            "optimizer.learning_rate=0.0: nothing would be learned; expected a number above 0, "
            "such as 0.001"
        )
    for name in ("b1", "b2", "momentum", "ema"):
        if o[name] >= 1:
            raise ConfigError(f"optimizer.{name}={o[name]}: expected a number in [0, 1)")
    for name, known in (
        ("name", USES),
        ("schedule", schedules.SCHEDULES),
        ("rounding", narrow.ROUNDINGS),
    ):
        if o[name] not in known:
            raise ConfigError(
                f"optimizer.{name}={o[name]!r} is unknown{nearest(o[name], known)}; one of "
                f"{', '.join(known)}"
            )
    for name, usual in DEFAULTS.items():
        if o[name] != usual and name not in USES[o.name]:
            raise ConfigError(
                f"optimizer.{name}={o[name]} would be ignored: {o.name} has none; leave it at "
                f"{usual}"
            )
    if o.final > 1:
        raise ConfigError(
            f"optimizer.final={o.final}: expected the last learning rate as a share of the peak, "
            "in [0, 1]"
        )
    if o.final != FINAL and "final" in schedules.IGNORED.get(o.schedule, ()):
        raise ConfigError(
            f"optimizer.final={o.final} would be ignored: the schedule {o.schedule!r} has no "
            f"end; leave it at {FINAL}"
        )
    if bool(o.cooldown) != (o.schedule == "wsd"):
        raise ConfigError(
            f"optimizer.cooldown={o.cooldown}: the schedule 'wsd' ends in so many updates of "
            "decay, and no other schedule has any; "
            f"optimizer.schedule is {o.schedule!r}"
        )
    if schedules.warmup_within(o.warmup, steps) + o.cooldown > steps:
        raise ConfigError(
            f"optimizer.warmup={o.warmup} and optimizer.cooldown={o.cooldown} are together more "
            f"than steps={steps}"
        )
    if 0 < o.skip_above <= 1:
        raise ConfigError(
            f"optimizer.skip_above={o.skip_above} would skip every second update; expected a "
            "multiple such as 10, or 0"
        )
    rules.check(o.decay, "optimizer.decay")
    rules.check(o.rates, "optimizer.rates")


def adamw(schedule: optax.Schedule, **options) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019). options: as in `build`."""
    return build("adamw", schedule, {}, **options)


def _adam(axes: Axes, o: dict) -> optax.GradientTransformation:
    return optax.scale_by_adam(o["b1"], o["b2"], o["eps"], mu_dtype=jnp.float32)


def _lion(axes: Axes, o: dict) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023, algorithm 2): sign of an interpolation of gradient and momentum."""
    return optax.scale_by_lion(o["b1"], o["b2"], mu_dtype=jnp.float32)


def _adafactor(axes: Axes, o: dict, factored: int = FACTORED) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, algorithm 4) without momentum.

    Steps are relative to the RMS of each matrix, at least 1e-3.
    """
    one = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=factored),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    return each_matrix(one, axes)


def _muon(axes: Axes, o: dict) -> optax.GradientTransformation:
    return grouped(
        lambda path: "adamw" if muon_matrix(path, axes) is None else "muon",
        {"muon": scale_by_muon(axes, o["momentum"]), "adamw": _adam(axes, o)},
    )


_CORES = {"adamw": _adam, "adafactor": _adafactor, "lion": _lion, "muon": _muon}


def _decayed(weight_decay: float, decay: Table, rates: Table) -> optax.GradientTransformation:
    """Add each parameter's weight decay, and multiply by its learning rate factor."""

    def init(params):
        rules.values(params, decay, "optimizer.decay")
        return optax.EmptyState()

    def update(updates, state, params=None):
        def one(path, u, p):
            name = path_name(path)
            share, rate = (
                rules.of(decay, name, "optimizer.decay"),
                rules.of(rates, name, "optimizer.rates"),
            )
            u = u + weight_decay * share * p.astype(u.dtype)
            return u if rate == 1.0 else rate * u

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformation(init, update)
