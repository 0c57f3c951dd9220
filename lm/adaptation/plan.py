"""Plan: what a config's `adaptation` section trains, holds fixed and adds to the loss."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.adaptation import lora as low_rank
from lm.adaptation.lora import Lora
from lm.adaptation.penalties import penalised
from lm.distributed.rules import by_path
from lm.losses import Loss
from lm.losses.divergence import DIRECTIONS
from lm.models.config import LM_HEADS, ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a base model is adapted. axes: logical axis names, from `model.logical_axes()`.

    The trained params are the model's own or LoRA's adapters. The state also holds `fixed`:
    {"base": initial params, "fisher": their Fisher information, if `ewc`}.
    """

    axes: Any
    lora: Lora | None = None
    l2_sp: float = 0.0
    ewc: float = 0.0
    kl: float = 0.0
    direction: str = "forward"

    def trained_axes(self) -> dict:
        """Logical axis names of the trained params."""
        return (
            low_rank.logical_axes(by_path(self.axes), self.lora.pattern) if self.lora else self.axes
        )

    def fixed_axes(self) -> dict:
        """Logical axis names of the fixed params."""
        return {"base": self.axes} | ({"fisher": self.axes} if self.ewc else {})

    def start(self, base: dict, key: jax.Array, fisher: dict | None = None) -> tuple[dict, dict]:
        """Return the initial (trained, fixed) params; pure. A missing `fisher` is zeros."""
        if self.ewc and fisher is None:
            fisher = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), base)
        fixed = {"base": base} | ({"fisher": fisher} if self.ewc else {})
        if self.lora:
            return low_rank.initialise(base, by_path(self.axes), self.lora, key), fixed
        return jax.tree.map(lambda p: jnp.array(p, copy=True), base), fixed

    def weights(self, params: dict, fixed: dict) -> dict:
        """Return the adapted model's params."""
        return low_rank.merge(fixed["base"], params, self.lora.scale) if self.lora else params

    def loss(self, loss_function: Callable[..., Loss]) -> Callable[..., Loss]:
        """Wrap a loss function: (model, trained params, batch, rng, *, fixed) -> Loss."""
        only = (
            sorted(low_rank.kernels(by_path(self.axes), self.lora.pattern)) if self.lora else None
        )
        inner = penalised(
            loss_function,
            l2_sp_strength=self.l2_sp,
            ewc_strength=self.ewc,
            kl_strength=self.kl,
            direction=self.direction,
            only=only,
        )
        penalties = self.l2_sp or self.ewc or self.kl

        def loss(model, params: dict, batch, rng=None, *, fixed: dict) -> Loss:
            weights = params
            if self.lora:
                base = jax.lax.stop_gradient(fixed["base"])
                weights = low_rank.merge(
                    base, params, self.lora.scale, dropout=self.lora.dropout, rng=rng
                )
            rng = rng if model.config.dropout > 0 else None
            return inner(model, weights, batch, rng, **({"fixed": fixed} if penalties else {}))

        return loss


def of_config(section: Any, axes) -> Plan | None:
    """Build the plan of a checked `adaptation` section; None if everything is off.

    Raises ConfigError for a LoRA pattern that matches no kernel.
    """
    plan = Plan(
        axes,
        lora_of(section),
        section.l2_sp,
        section.ewc.strength,
        section.kl.strength,
        section.kl.direction,
    )
    if not (plan.lora or plan.l2_sp or plan.ewc or plan.kl):
        return None
    if plan.lora:
        low_rank.check_pattern(by_path(axes), plan.lora.pattern)
    return plan


def lora_of(section: Any) -> Lora | None:
    """Return the section's LoRA options, or None."""
    o = section["lora"]
    return Lora(o["rank"], o["alpha"], o["dropout"], o["pattern"]) if o["rank"] else None


def check(section: Any, init_from: str) -> None:
    """Raise ConfigError for an invalid `adaptation` section.

    The message names field, value and expectation.
    """
    o, e, k = section.lora, section.ewc, section.kl
    numbers = {
        "lora.rank": o.rank,
        "lora.alpha": o.alpha,
        "lora.dropout": o.dropout,
        "l2_sp": section.l2_sp,
        "ewc.strength": e.strength,
        "kl.strength": k.strength,
    }
    for name, value in numbers.items():
        if not math.isfinite(value) or value < 0:
            raise ConfigError(f"adaptation.{name}={value}: expected a finite number, 0 or more")
    if o.dropout >= 1:
        raise ConfigError(f"adaptation.lora.dropout={o.dropout}: expected a share in [0, 1)")
    usual = {"alpha": 0.0, "dropout": 0.0, "pattern": low_rank.PATTERN}
    for name, value in usual.items():
        if not o.rank and o[name] != value:
            raise ConfigError(
                f"adaptation.lora.{name}={o[name]!r} would be ignored: set adaptation.lora.rank, "
                f"or leave it at {value!r}"
            )
    try:
        re.compile(o.pattern)
    except re.error as error:
        raise ConfigError(
            f"adaptation.lora.pattern={o.pattern!r} is not a regular expression: {error}"
        ) from error
    if bool(e.strength) != bool(e.fisher):
        raise ConfigError(
            f"adaptation.ewc.strength={e.strength} and adaptation.ewc.fisher={e.fisher!r}: "
            "set both or neither; python -m lm.fisher writes the file"
        )
    if k.direction not in DIRECTIONS:
        raise ConfigError(
            f"adaptation.kl.direction={k.direction!r} is "
            f"unknown{nearest(k.direction, DIRECTIONS)}; forward or reverse"
        )
    if k.direction != "forward" and not k.strength:
        raise ConfigError(
            f"adaptation.kl.direction={k.direction!r} would be ignored: set adaptation.kl.strength"
        )
    on = [name for name in ("lora.rank", "l2_sp", "ewc.strength", "kl.strength") if numbers[name]]
    if on and not init_from:
        raise ConfigError(
            f"adaptation.{on[0]}={numbers[on[0]]} keeps a model near its base, and there is none: "
            "set init_from"
        )


def check_head(section: Any, head: str) -> None:
    """Raise ConfigError when a penalty is undefined for a model with this head."""
    if section.kl.strength and head not in LM_HEADS:
        raise ConfigError(
            f"adaptation.kl.strength={section.kl.strength}: a model with head={head!r} predicts no "
            "tokens; set it to 0"
        )
