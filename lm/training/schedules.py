"""Learning rate schedules: linear warm-up to the peak, then constant or decaying.

The first update has a rate above 0: with `warmup` updates of warm-up, update n = 0, 1, ... < warmup
has the rate peak * (n + 1) / warmup.
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
    """Linear decay to `final` (Devlin et al. 2019)."""
    return 1 - (1 - final) * _progress(count, warmup, steps)


def _wsd(count, warmup, steps, cooldown, final):
    """Warm-up, stable, decay: the peak, then linear decay to `final` in `cooldown` updates.

    Hu et al. 2024, section 4.
    """
    return 1 - (1 - final) * _progress(count, steps - cooldown, steps)


def _inverse_sqrt(count, warmup, steps, cooldown, final):
    """Inverse square root of the number of updates, 1 at the end of the warm-up.

    Vaswani et al. 2017, section 5.3; Raffel et al. 2020.
    """
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
    """Warm-up updates in a run of `steps`: at most half, so that a short run reaches the peak."""
    return min(warmup, steps // 2)


def schedule(
    name: str, peak: float, warmup: int, steps: int, final: float = 0.1, cooldown: int = 0
) -> optax.Schedule:
    """Return update -> learning rate, float32.

    final: last rate as a share of the peak. cooldown: updates of decay in "wsd".
    """
    shape = SCHEDULES[name]

    def rate(count):
        count = jnp.asarray(count, jnp.float32)
        rising = (count + 1) / max(1, warmup)
        falling = shape(count, warmup, steps, cooldown, final)
        return peak * jnp.where(count < warmup, rising, falling)

    return rate
