"""The learning rate over a run: a linear rise to the peak, then one of several ways down.

The first update already moves: with `warmup` updates of rise, update n = 0, 1, ... < warmup has the rate peak * (n + 1) / warmup.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Shape = Callable[
    ..., jax.Array
]  # (update as float32, warmup, steps, cooldown, final) -> share of the peak


def _progress(count, warmup: int, steps: int):
    return jnp.clip((count - warmup) / max(1, steps - warmup), 0.0, 1.0)


def _cosine(count, warmup, steps, cooldown, final):
    """Half a cosine down to `final` (Loshchilov & Hutter 2017)."""
    return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(count, warmup, steps)))


def _linear(count, warmup, steps, cooldown, final):
    """A straight line down to `final` (Devlin et al. 2019)."""
    return 1 - (1 - final) * _progress(count, warmup, steps)


def _wsd(count, warmup, steps, cooldown, final):
    """Warm-up, stable, decay: the peak, and a straight line down to `final` in the last `cooldown` updates (Hu et al. 2024, section 4)."""
    return 1 - (1 - final) * _progress(count, steps - cooldown, steps)


def _inverse_sqrt(count, warmup, steps, cooldown, final):
    """The inverse square root of the updates done, 1 at the end of the rise (Vaswani et al. 2017, section 5.3; Raffel et al. 2020)."""
    return jnp.sqrt(max(1, warmup) / jnp.maximum(count + 1, max(1, warmup)))


def _constant(count, warmup, steps, cooldown, final):
    return jnp.ones_like(count)


SCHEDULES: dict[str, Shape] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
    "inverse_sqrt": _inverse_sqrt,
    "constant": _constant,
}
IGNORED = {
    "cosine": ("cooldown",),
    "linear": ("cooldown",),
    "inverse_sqrt": ("cooldown", "final"),
    "constant": ("cooldown", "final"),
}


def warmup_within(warmup: int, steps: int) -> int:
    """The updates of the rise in a run of so many: as asked, but at most half, so that a short run reaches its peak."""
    return min(warmup, steps // 2)


def schedule(
    name: str, peak: float, warmup: int, steps: int, final: float = 0.1, cooldown: int = 0
) -> optax.Schedule:
    """Update -> learning rate, float32. `final`: the last rate as a share of the peak; `cooldown`: updates of "wsd"'s way down."""
    shape = SCHEDULES[name]

    def rate(count):
        count = jnp.asarray(count, jnp.float32)
        rising = (count + 1) / max(1, warmup)
        falling = shape(count, warmup, steps, cooldown, final)
        return peak * jnp.where(count < warmup, rising, falling)

    return rate
