"""Skipped updates: a gradient that is far above the usual, or not finite, changes nothing; decided on the device, inside the step."""

import flax.struct
import jax
import jax.numpy as jnp

WINDOW = 128  # norms that the median is taken over
SEEN = 16  # norms before the first judgement


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
