"""Tables with several uses on many devices: gathered once, their gradients reduced once.

The token table is used as input and, if it is tied, as output; an encoder-decoder uses it twice as
input. XLA reduces the gradient of every use by itself. Here the uses read one array of copies, a
copy for each device, and their gradients are added on the device before they are reduced.
"""

import contextlib
import contextvars
from collections.abc import Callable, Generator, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.models import shards
from lm.models.shards import Axes


@flax.struct.dataclass
class Copies:
    """A table [V, D] and its copies float32 [N, V, D], one on each device along `axes`."""

    table: jax.Array
    of_devices: jax.Array
    axes: Axes = flax.struct.field(pytree_node=False)


_COPIES: contextvars.ContextVar[tuple[Copies, ...]] = contextvars.ContextVar("copies", default=())


@contextlib.contextmanager
def copied(tables: Iterable[tuple[jax.Array, PartitionSpec]], axes: Axes) -> Generator[None]:
    """Within the block, `copies` finds the copies of these tables along these mesh axes.

    tables: arrays and how each is split over the mesh. axes: those that split the rows and the
    length of a batch; without any, it does nothing.
    """
    token = _COPIES.set(tuple(_copied(table, place, axes) for table, place in tables if axes))
    try:
        yield
    finally:
        _COPIES.reset(token)


def _copied(table: jax.Array, place: PartitionSpec, axes: Axes) -> Copies:
    several = [shards.left(shards.left(part), shards.single()) for part in place]
    kept = [shards.left(part, axes) for part in several]

    def gathered(table):
        for dimension, (part, kept_part) in enumerate(zip(several, kept, strict=True)):
            if over := shards.left(part, kept_part):
                table = jax.lax.all_gather(table, over, axis=dimension, tiled=True)
        return table[None].astype(jnp.float32)

    first, *others = several
    copies = shards.mapped(gathered, shards.of_each(first, *others), shards.of_each(axes, *kept))
    return Copies(table, copies(table), axes)


def copies(table: jax.Array) -> Copies | None:
    """The copies of this very array; None without any."""
    return next((each for each in _COPIES.get() if each.table is table), None)


def is_copies(x: Any) -> bool:
    return isinstance(x, Copies)


def mapped(change: Callable[[Copies], Any], held: Any) -> Any:
    """A tree with `change(x)` in the place of each `Copies` x."""
    return jax.tree.map(lambda x: change(x) if is_copies(x) else x, held, is_leaf=is_copies)


def whole(held: Any) -> Any:
    """A tree with the table in the place of each `Copies`."""
    return mapped(lambda found: found.table, held)


def restored(held: Any, gradient: Any) -> Any:
    """The gradient of a tree `held`, from that of its arrays: of a table or of its copies."""

    def one(x, found):
        if not is_copies(x):
            return found
        table, of_devices = (
            jnp.zeros_like(like) if like.ndim != found.ndim else found
            for like in (x.table, x.of_devices)
        )
        return Copies(table, of_devices, x.axes)

    if gradient is None:
        return None
    return jax.tree.map(one, held, gradient, is_leaf=is_copies)
