"""Detect spikes.

In the step: skip an update whose gradient is not finite or far above the median. In the loop:
report since when the loss is too high, so that no checkpoint is saved from then on.
"""

import collections
import math
import statistics
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

WINDOW = 128  # gradient norms, or losses, in the median
SEEN = 16  # gradient norms, or losses, needed before the first decision
RISE = 1.0  # nats; a loss above median + max(RISE, median / 2) is a spike
LASTS = 100  # steps after which a higher loss counts as a new level, not a spike


@flax.struct.dataclass
class Guard:
    """State of the guard.

    norms: float32 [WINDOW], the last finite gradient norms, NaN where there is none yet.
    seen, skipped: int32, numbers of finite norms and of skipped updates.
    nonfinite: int32, consecutive updates up to now with a loss or gradient that is not finite.
    """

    norms: jax.Array
    seen: jax.Array
    skipped: jax.Array
    nonfinite: jax.Array


def start() -> Guard:
    """Initial guard."""
    return Guard(jnp.full(WINDOW, jnp.nan, jnp.float32), jnp.int32(0), jnp.int32(0), jnp.int32(0))


def judge(guard: Guard, loss: jax.Array, norm: jax.Array, above: float) -> tuple[Guard, jax.Array]:
    """(guard after this gradient, whether to apply the update).

    above: maximum norm as a multiple of the median; 0 = any finite norm. Every finite norm enters
    the median, so after a lasting change of scale at most half a window of updates is skipped.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    spike = jnp.asarray(False)
    if above:
        spike = (guard.seen >= SEEN) & (norm > above * jnp.nanmedian(guard.norms))
    take = finite & ~spike
    after = Guard(
        norms=jnp.where(finite, guard.norms.at[guard.seen % WINDOW].set(norm), guard.norms),
        seen=guard.seen + finite,
        skipped=guard.skipped + ~take,
        nonfinite=jnp.where(finite, 0, guard.nonfinite + 1),
    )
    return after, take


class Spike:
    """Detector of loss spikes. since: first step of the current spike, or None."""

    def __init__(self):
        self.since: int | None = None
        self._losses: collections.deque = collections.deque(maxlen=WINDOW)

    def see(self, step: int, loss: float, norm: float) -> bool:
        """Whether the step is in a spike: not finite, or a loss far above the median.

        Call it for every step.
        """
        finite, known = math.isfinite(loss) and math.isfinite(norm), len(self._losses) >= SEEN
        usual = statistics.median(self._losses) if known else loss
        if finite and self.since is not None and step - self.since >= LASTS:
            self._losses.clear()
        elif not finite or loss > usual + max(RISE, abs(usual) / 2):
            self.since = step if self.since is None else self.since
            return True
        self.since = None
        self._losses.append(loss)
        return False


def advice(config: Any) -> str:
    """Config changes to try after a loss that is not finite, without those already made."""
    o, found = (
        config.optimizer,
        [f"an optimizer.learning_rate below {config.optimizer.learning_rate:g}"],
    )
    found.append(f"an optimizer.warmup longer than {o.warmup}")
    if not o.clip:
        found.append("optimizer.clip=1.0")
    if config.model.dtype != "float32":
        found.append("model.dtype='float32'")
    if not o.skip_nonfinite:
        found.append("optimizer.skip_nonfinite=3")
    return f"{', '.join(found[:-1])} or {found[-1]}"
