"""Work along the length in chunks, so that logits exist for [B, C, V] at a time.

Each device goes through the chunks of its own rows (`on_rows`). The loops do not communicate over
the axes that split the batch: the head is gathered once before, its gradient reduced once after.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.models import shards, tied

LOGITS_AT_ONCE = 2**28  # bytes of float32 logits per chunk and device

# (head parameters, hidden [B, C, D]) -> logits float32 [B, C, V]
Logits = Callable[[Any, jax.Array], jax.Array]


def chunk_length(batch_size: int, length: int, vocab_size: int) -> int:
    """Positions per chunk, such that its logits take at most LOGITS_AT_ONCE bytes per device.

    There are as few equal chunks as possible, and at least two.
    """
    devices = math.prod(shards.automatic().values())
    fits = max(1, LOGITS_AT_ONCE * devices // (4 * batch_size * vocab_size))
    return -(-length // max(2, -(-length // fits)))


def split(arrays, chunk: int):
    """Reshape [B, T, ...] to [ceil(T / chunk), B, chunk, ...], padded with zeros (weight 0)."""

    def one(x):
        short = -x.shape[1] % chunk
        x = jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    return jax.tree.map(one, arrays)


def join(x: jax.Array, length: int) -> jax.Array:
    """Inverse of `split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def on_rows(
    function: Callable[..., tuple[Any, Any, Any]], held: Any, arrays: Any, chunk: int
) -> tuple[Any, Any, Any]:
    """Call `function(held, arrays, chunk)`; on a mesh, each device with its part of the arrays.

    held: tree of arrays, such as the head's, that every device has whole along the axes that split
    `batch` and `length`; or of `tied.Copies`, of which the function gets the device's own. arrays:
    tree of [B, T, ...]. The function closes over no arrays. It returns a tree of [B, T, ...], a
    tree of sums over its rows, and the gradient of `held` or None. Both are added over devices,
    except the gradients of copies, which stay with each device.
    """
    batch, length = shards.batch_axes(jax.tree.leaves(arrays)[0].shape)
    axes = (*batch, *length)
    each_has = lambda x: tied.is_copies(x) and x.axes == axes
    given = tied.mapped(lambda x: x.of_devices if each_has(x) else x.table, held)
    if not axes:
        found, sums, gradient = function(given, arrays, chunk)
        return found, sums, tied.restored(held, gradient)
    apart = jax.tree.map(each_has, held, is_leaf=tied.is_copies)
    chunk = -(-chunk // shards.parts(length))

    def local(given, arrays):
        own = jax.tree.map(lambda x, apart: x[0] if apart else x, given, apart)
        found, *sums = function(own, arrays, chunk)
        return found, jax.tree.map(lambda x: x[None], sums)

    rows, each = shards.spec(batch, length), shards.of_each(axes)
    places = jax.tree.map(lambda apart: each if apart else shards.spec(), apart)
    run = shards.mapped(local, (places, rows), (rows, each), axes)
    found, (sums, gradient) = run(given, arrays)
    added = lambda x: jnp.sum(x, axis=0)
    if gradient is not None:
        gradient = jax.tree.map(lambda x, apart: x if apart else added(x), gradient, apart)
    return found, jax.tree.map(added, sums), tied.restored(held, gradient)


def mapped(function: Callable[..., Any], head: Any, arrays: Any, chunk: int) -> Any:
    """Apply `function(head, arrays of a chunk)` -> tree of [B, C, ...] to `chunk` positions a time.

    arrays: tree of [B, T, ...]. Returns the function's tree with [B, T, ...]. The backward pass
    computes each chunk again and sums the gradient of `head` in float32. The function closes over
    no arrays.
    """
    wide, narrow = _widened(head)

    def of_rows(wide, arrays, chunk):
        body = jax.checkpoint(lambda wide, xs: function(narrow(wide), xs))
        length = jax.tree.leaves(arrays)[0].shape[1]
        _, found = jax.lax.scan(lambda _, xs: (None, body(wide, xs)), None, split(arrays, chunk))
        return jax.tree.map(lambda x: join(x, length), found), (), None

    return on_rows(of_rows, wide, arrays, chunk)[0]


def summed(
    function: Callable[..., jax.Array], head: Any, arrays: Any, chunk: int, fixed: Any = ()
) -> jax.Array:
    """Sum of `function(head, arrays of a chunk, *fixed)`, a float32 scalar; see `mapped`.

    fixed: further arrays that the function needs whole, such as the head of another model.
    """
    wide, narrow = _widened(head)

    def of_rows(held, arrays, chunk):
        wide, fixed = held

        @jax.checkpoint
        def body(total, xs):
            return total + function(narrow(wide), xs, *fixed), None

        return (), jax.lax.scan(body, jnp.float32(0), split(arrays, chunk))[0], None

    return on_rows(of_rows, (wide, fixed), arrays, chunk)[1]


def _widened(head: Any) -> tuple[Any, Callable[[Any], Any]]:
    """(head in float32, function back to its dtypes), so that its gradient is summed in float32."""
    dtypes = jax.tree.map(lambda x: x.dtype, tied.whole(head))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), head)
    return wide, lambda wide: jax.tree.map(lambda x, dtype: x.astype(dtype), wide, dtypes)
