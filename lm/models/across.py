"""State-space layers of rows that are split over devices (context parallelism).

Every device scans its own part of a row from a state of zeros. How much of an earlier state a part
keeps, and the state at its end, are then combined over the devices by a prefix scan (Blelloch 1990,
section 1.4). What the state before a part adds to the part's outputs is added last. Nothing of the
length of the row is sent.

Where the mesh does not split the length, these are the functions of `scan.py`.
"""

import jax
import jax.numpy as jnp

from lm.models import scan, shards
from lm.models.shards import Axes, mesh_axes, moved, spec


def whole(segments_BT: jax.Array) -> jax.Array:
    """Segments of whole rows on every device, to number their documents without more messages."""
    if not mesh_axes("length", segments_BT.shape[1]):
        return segments_BT
    return jax.lax.with_sharding_constraint(
        segments_BT, spec(mesh_axes("batch", len(segments_BT)), ())
    )


def causal_conv(x_BTC, kernel_KC, segments_BT, window, channels: str):
    """`scan.causal_conv`; every device gets the last inputs of the part before its own.

    channels: name of the last dimension. A part shorter than the window is not split.
    """
    y, last = scan.causal_conv(x_BTC, kernel_KC, segments_BT, window)
    length, before = mesh_axes("length", x_BTC.shape[1]), len(kernel_KC) - 1
    if not length or not 0 < before <= x_BTC.shape[1] // shards.parts(length):
        return y, last

    def of_device(x, run, kernel, window):
        ends = x[:, -before:], run[:, -before:]
        earlier, runs_earlier = moved(ends, length, 1, around=False)
        earlier = jnp.where(jax.lax.axis_index(length) == 0, window, earlier)
        join = lambda *parts: jnp.concatenate(parts, axis=1)
        return scan.convolved(join(earlier, x), join(runs_earlier, run), kernel)

    batch, inner = mesh_axes("batch", len(x_BTC)), mesh_axes(channels, x_BTC.shape[2])
    if window is None:
        window = jnp.zeros((len(x_BTC), before, x_BTC.shape[2]))
    rows, of_x = spec(batch, length), spec(batch, length, inner)
    specs = of_x, rows, spec((), inner), spec(batch, (), inner)
    y = shards.mapped(of_device, specs, of_x)(
        x_BTC, scan.runs(segments_BT)[0], kernel_KC, window.astype(x_BTC.dtype)
    )
    return y, last


def s6(A, h, u, dt, B, C, starts, chunk: int) -> tuple[jax.Array, jax.Array]:
    """`scan.s6`."""
    length = mesh_axes("length", u.shape[1])
    if not length:
        return scan.s6(A, h, u, dt, B, C, starts, chunk)

    def of_device(A, h, u, dt, B, C, starts):
        y, end = scan.s6(A, _first(h, length), u, dt, B, C, starts, chunk)
        keeps = ~starts.any(1)[:, None, None]
        kept = jnp.where(keeps, jnp.exp(dt.sum(1)[:, None] * A), 0)
        before, end = _passed(kept, end, length)
        return y + scan.s6_from(A, before, dt, C, starts, chunk), end[None]

    batch, inner = mesh_axes("batch", len(u)), mesh_axes("mlp", u.shape[2])
    of_u, of_b, of_h = spec(batch, length, inner), spec(batch, length, ()), (batch, (), inner)
    specs = spec((), inner), spec(*of_h), of_u, of_u, of_b, of_b, spec(batch, length)
    of_devices = shards.mapped(of_device, specs, (of_u, spec(length, *of_h)))
    y, ends = of_devices(A, h, u, dt, B, C, starts)
    return y, ends[-1]


def ssd_scan(A, h, x, dt, B, C, starts, chunk: int) -> tuple[jax.Array, jax.Array]:
    """`scan.ssd_scan`."""
    length = mesh_axes("length", x.shape[1])
    if not length:
        return scan.ssd_scan(A, h, x, dt, B, C, starts, chunk)

    def of_device(A, h, x, dt, B, C, starts):
        y, end = scan.ssd_scan(A, _first(h, length), x, dt, B, C, starts, chunk)
        kept = jnp.where(~starts.any(1)[:, None], jnp.exp((dt * A).sum(1)), 0)
        before, end = _passed(kept[..., None, None], end, length)
        return y + scan.ssd_from(A, before, dt, C, starts), end[None]

    batch, heads = mesh_axes("batch", len(x)), mesh_axes("heads", x.shape[2])
    groups = mesh_axes("heads", B.shape[2])  # heads of one group stay together
    heads = heads if groups or B.shape[2] == 1 else ()
    of_x, of_b = spec(batch, length, heads, ()), spec(batch, length, groups, ())
    of_h = batch, heads, (), ()
    specs = spec(heads), spec(*of_h), of_x, spec(batch, length, heads), of_b, of_b
    of_devices = shards.mapped(
        of_device, (*specs, spec(batch, length)), (of_x, spec(length, *of_h))
    )
    y, ends = of_devices(A, h, x, dt, B, C, starts)
    return y, ends[-1]


def _first(h: jax.Array, axes: Axes) -> jax.Array:
    """The state before the row, for the device of its first part, and zeros for the others."""
    return jnp.where(jax.lax.axis_index(axes) == 0, h, 0)


def _passed(kept: jax.Array, end: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """(state before the part, state after it), of all parts up to this one.

    kept: share of a state before the part that is left after it. end: state after the part, from
    zeros. Takes log2(parts) messages.
    """
    by = 1
    while by < shards.parts(axes):
        kept_before, before = moved((kept, end), axes, by, around=False)
        kept, end, by = kept * kept_before, kept * before + end, 2 * by
    return moved(end, axes, 1, around=False), end
