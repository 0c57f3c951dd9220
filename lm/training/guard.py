"""What is done about spikes. Inside the step: skip an update whose gradient is not finite, or far above the usual. In the loop: tell
from which step on a loss is off, so that no checkpoint of then stands for the run.
"""

import collections
import math
import statistics
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

WINDOW = 128  # norms that the median is taken over
SEEN = 16  # norms, or losses, before the first judgement
RISE = 1.0  # above the median of recent losses, in nats or half of it, whichever is more: a spike
LASTS = 100  # steps after which a higher loss is no spike but another level


@flax.struct.dataclass
class Guard:
    """norms: float32 [WINDOW], the last finite gradient norms, NaN where there is none yet.   seen, skipped: int32, how many there were.

    nonfinite: int32, updates in a row until now whose loss or gradient was not finite.
    """

    norms: jax.Array
    seen: jax.Array
    skipped: jax.Array
    nonfinite: jax.Array


def start() -> Guard:
    """A guard that has seen nothing."""
    return Guard(jnp.full(WINDOW, jnp.nan, jnp.float32), jnp.int32(0), jnp.int32(0), jnp.int32(0))


def judge(guard: Guard, loss: jax.Array, norm: jax.Array, above: float) -> tuple[Guard, jax.Array]:
    """(the guard after this gradient, whether to apply it). `above`: largest norm as a multiple of the median; 0 = any finite one.

    Every finite norm enters the median, so that a lasting change of scale is skipped for half a window at most.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    spike = jnp.asarray(False)
    if above:
        spike = (guard.seen >= SEEN) & (norm > above * jnp.nanmedian(guard.norms))
    take = finite & ~spike
    after = Guard(
        norms=jnp.where(finite, guard.norms.at[guard.seen % WINDOW].set(norm), guard.norms),
        seen=guard.seen + finite, skipped=guard.skipped + ~take, nonfinite=jnp.where(finite, 0, guard.nonfinite + 1),
    )  # fmt: skip
    return after, take


class Spike:
    """The spike that goes on, if one does. since: the first step whose loss is off, or None."""

    def __init__(self):
        self.since: int | None = None
        self._losses: collections.deque = collections.deque(maxlen=WINDOW)

    def see(self, step: int, loss: float, norm: float) -> bool:
        """Whether the step is part of a spike: not finite, or a loss far above the usual. Call it for every step."""
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
    """What to change in a training config after a loss that was not finite; nothing that is so already."""
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
