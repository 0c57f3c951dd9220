"""Numerics of state-space models: causal convolution, selective scan (S6) and SSD.

All three treat the packed documents of a row as if each were alone. `segments` int [B, T] numbers
the documents of a row; 0 is padding. State and convolution window are reset where the number
changes, and padding leaves them unchanged.

A returned state and window belong to the row's last document. A state and window passed in continue
the document of the row's first position; if that is padding, they continue none. So a document may
be read in pieces of any length. Padding may follow a piece, but must not come before or inside a
piece that continues a document.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def runs(segments_BT) -> tuple[jax.Array, jax.Array]:
    """Number each row's documents from 0, int32 [B, T], and mark real tokens, bool [B, T].

    Padding counts to the document before it; padding at the start of a row is a document of its
    own.
    """
    real = segments_BT != 0
    latest = jax.lax.cummax(jnp.where(real, jnp.arange(segments_BT.shape[1]), 0), axis=1)
    document = jnp.take_along_axis(segments_BT, latest, axis=1)
    changes = document[:, 1:] != document[:, :-1]
    return jnp.cumsum(jnp.pad(changes, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32), real


def starts_of(run_BT) -> jax.Array:
    """Where a document begins inside a row, bool [B, T]. The state before is not for it."""
    return jnp.pad(run_BT[:, 1:] != run_BT[:, :-1], ((0, 0), (1, 0)))


def before_starts(starts_BT) -> jax.Array:
    """Where the document of the state before still goes on, bool [B, T]."""
    return jnp.cumsum(starts_BT, axis=1) == 0


def causal_conv(x_BTC, kernel_KC, segments_BT, window=None) -> tuple[jax.Array, jax.Array]:
    """Depthwise causal convolution within documents: y_t = sum_k kernel_k x_{t-K+1+k}.

    x_BTC [B, T, C]; kernel_KC [K, C], the current token's kernel last; window [B, K - 1, C], the
    inputs before the first token, or None for zeros. Returns y [B, T, C] in the dtype of x, and the
    window that continues the row.
    """
    width, (batch, length, channels) = kernel_KC.shape[0], x_BTC.shape
    run, real = runs(segments_BT)
    window = (
        jnp.zeros((batch, width - 1, channels), x_BTC.dtype)
        if window is None
        else window.astype(x_BTC.dtype)
    )
    x = jnp.concatenate([window, x_BTC], axis=1)
    runs_of_x = jnp.pad(run, ((0, 0), (width - 1, 0)))  # the window belongs to document 0
    y = convolved(x, runs_of_x, kernel_KC)
    # number of positions up to and including the row's last token
    after = jnp.max(jnp.where(real, jnp.arange(1, length + 1), 0), axis=1)
    cut = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, width - 1))
    window = jnp.where((cut(runs_of_x, after) == run[:, -1:])[..., None], cut(x, after), 0)
    return y, window


def convolved(x, runs_of_x, kernel_KC) -> jax.Array:
    """Convolution of x [B, K - 1 + T, C], which begins with a window, [B, T, C].

    runs_of_x: int32 [B, K - 1 + T], the document of every input.
    """
    width, length = len(kernel_KC), x.shape[1] - len(kernel_KC) + 1
    dtype = jnp.promote_types(jnp.float32, x.dtype)
    y = jnp.zeros((len(x), length, x.shape[2]), dtype)
    run = runs_of_x[:, width - 1 :]
    for k in range(width):
        shift = slice(k, k + length)
        y += jnp.where((runs_of_x[:, shift] == run)[..., None], x[:, shift], 0) * kernel_KC[
            k
        ].astype(dtype)
    return y.astype(x.dtype)


def selective_scan(
    u, dt, A, B, C, D, segments, state=None, chunk=32, scan: Callable | None = None
) -> tuple[jax.Array, jax.Array]:
    """S6 (Gu & Dao 2023, Algorithm 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, and y_t = C_t h_t + D u_t.

    u [B, T, E]; dt [B, T, E], positive; A [E, N], negative; B and C [B, T, N]; D [E]; state
    [B, N, E] or None for zeros. Returns y [B, T, E] in the dtype of u, and the last state. States
    and arithmetic are float32 (float64 if u is).

    Of the states [T, N, E] only one in every `chunk` tokens is kept for the backward pass, which
    recomputes the others chunk by chunk. Memory beyond the inputs and their gradients is
    `(T / chunk + a few times chunk) N E` numbers.

    scan: what computes it without D, by default `s6`.
    """
    run, real = runs(segments)
    dtype = jnp.promote_types(jnp.float32, u.dtype)
    dt, A = jnp.where(real[..., None], dt, 0).astype(dtype), A.T.astype(dtype)
    state = jnp.zeros((u.shape[0], *A.shape), dtype) if state is None else state.astype(dtype)
    if u.shape[1] == 1:  # a decoding step
        y, state = _s6_step(A, state, *(x[:, 0].astype(dtype) for x in (u, dt, B, C)))
        y = y[:, None]
    else:
        y, state = (scan or s6)(A, state, u, dt, B, C, starts_of(run), chunk)
    return (y + u.astype(dtype) * D.astype(dtype)).astype(u.dtype), state


def ssd(
    x, dt, A, B, C, D, segments, state=None, chunk=64, scan: Callable | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mamba-2's SSD, computed with matmuls (Dao & Gu 2024, section 6).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, and y_t = h_t C_t + D x_t.

    x [B, T, H, P]; dt [B, T, H], positive; A and D [H], A negative; B and C [B, T, G, N], each
    shared by H / G consecutive heads; state [B, H, P, N] or None for zeros. Returns y [B, T, H, P]
    in the dtype of x, and the last state. States and arithmetic are float32 (float64 if x is). The
    backward pass keeps the states at chunk borders and recomputes those inside.

    scan: what computes it without D, by default `ssd_scan`.
    """
    (batch, length, heads, width), n = x.shape, B.shape[-1]
    run, real = runs(segments)
    dtype = jnp.promote_types(jnp.float32, x.dtype)
    dt, A = jnp.where(real[..., None], dt, 0).astype(dtype), A.astype(dtype)
    state = jnp.zeros((batch, heads, width, n), dtype) if state is None else state.astype(dtype)
    if length == 1:  # a decoding step
        y, state = _ssd_step(A, state, *(z[:, 0].astype(dtype) for z in (x, dt, B, C)))
        y = y[:, None]
    else:
        y, state = (scan or ssd_scan)(A, state, x, dt, B, C, starts_of(run), chunk)
    return (y + x.astype(dtype) * D.astype(dtype)[:, None]).astype(x.dtype), state


def ssd_scan(A, h, x, dt, B, C, starts, chunk: int) -> tuple[jax.Array, jax.Array]:
    """`ssd` without D, from the state h; dt is 0 at padding, starts as by `starts_of`."""
    (batch, length, heads, width), (groups, n) = x.shape, B.shape[2:]
    split = (groups, heads // groups)  # a head is (g, r): the r-th of group g
    grouped = (
        x.reshape(batch, length, *split, width),
        dt.reshape(batch, length, *split),
        B,
        C,
        starts,
    )
    h = h.reshape(batch, *split, width, n)
    h, y = _ssd(A.reshape(split), h, _chunks(grouped, chunk))
    return _unchunked(y, length).reshape(x.shape), h.reshape(batch, heads, width, n)


def ssd_from(A, h, dt, C, starts) -> jax.Array:
    """What the state h before a part adds to its y, [B, T, H, P]; arguments as of `ssd_scan`."""
    (batch, _, width, n), groups = h.shape, C.shape[2]
    kept = jnp.where(before_starts(starts)[..., None], jnp.exp(jnp.cumsum(dt * A, axis=1)), 0)
    y = jnp.einsum("btgn,bgrpn->btgrp", C.astype(h.dtype), h.reshape(batch, groups, -1, width, n))
    return y.reshape(*dt.shape, width) * kept[..., None]


def _chunks(arrays, chunk: int):
    """Reshape [B, T, ...] to [T / chunk, chunk, B, ...].

    The last chunk is padded with zeros; a zero dt leaves the state unchanged.
    """

    def split(x):
        x = jnp.moveaxis(x, 1, 0)
        size = min(chunk, x.shape[0])
        x = jnp.pad(x, ((0, -x.shape[0] % size), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, arrays)


def _unchunked(x, length: int) -> jax.Array:
    """Inverse of `_chunks`."""
    return jnp.moveaxis(x.reshape(-1, *x.shape[2:])[:length], 0, 1)


def _s6_step(A, h, u, dt, B, C):
    """One token: A [N, E]; h [B, N, E]; u, dt [B, E]; B, C [B, N] -> y [B, E], h."""
    h = jnp.exp(dt[:, None] * A) * h + (dt * u)[:, None] * B[..., None]
    return jnp.einsum("bne,bn->be", h, C), h


def _sequential(a, b, h):
    def step(h, ab):
        h = ab[0] * h + ab[1]
        return h, h

    return jax.lax.scan(step, h, (a, b))[1]


def _parallel(a, b, h, reverse=False):
    """What `_sequential` computes; with `reverse`, all states of h_q = a_q h_{q+1} + b_q."""

    def combine(first, then):
        return then[0] * first[0], then[0] * first[1] + then[1]

    a, b = jax.lax.associative_scan(combine, (a, b), reverse=reverse)
    return a * h + b


def _recurrence(a, b, h) -> jax.Array:
    """All states of h_q = a_q h_{q-1} + b_q, starting from h; q is the leading axis.

    Sequential on CPU, where steps are cheap; elsewhere associative, as each is a kernel launch.
    """
    return jax.lax.platform_dependent(a, b, h, cpu=_sequential, default=_parallel)


def _s6_inside(A, h, u, dt, B, starts):
    """Decay a and states of one chunk, each [Q, B, N, E], from the state h [B, N, E] before it."""
    a = jnp.where(starts[..., None, None], 0, jnp.exp(dt[:, :, None] * A))
    return a, _recurrence(a, (dt * u)[:, :, None] * B[..., None], h)


def s6(A, h, u, dt, B, C, starts, chunk: int) -> tuple[jax.Array, jax.Array]:
    """`selective_scan` without D, from the state h; dt is 0 at padding, starts as by `starts_of`.

    A [N, E].
    """
    y, h = _s6(A, h, _chunks((u, dt, B, C, starts), chunk))
    return _unchunked(y, u.shape[1]), h


def s6_from(A, h, dt, C, starts, chunk: int) -> jax.Array:
    """What the state h before a part adds to its y, [B, T, E]; arguments as of `s6`."""

    @jax.checkpoint
    def some(part):
        elapsed, C, reached = part
        states = jnp.where(reached[..., None, None], jnp.exp(elapsed[:, :, None] * A) * h, 0)
        return jnp.einsum("qbne,qbn->qbe", states, C)

    of_tokens = jnp.cumsum(dt, axis=1), C.astype(h.dtype), before_starts(starts)
    return _unchunked(jax.lax.map(some, _chunks(of_tokens, chunk)), dt.shape[1])


def _s6_forward(A, h, chunks):
    """Return y [chunks, Q, B, E], the last state, and the state before every chunk."""

    def body(h, chunk):
        u, dt, B, C, starts = (x.astype(h.dtype) if x.dtype != bool else x for x in chunk)
        _, states = _s6_inside(A, h, u, dt, B, starts)
        return states[-1], (jnp.einsum("qbne,qbn->qbe", states, C), h)

    last, (y, borders) = jax.lax.scan(body, h, chunks)
    return y, last, borders


@jax.custom_vjp
def _s6(A, h, chunks):
    y, last, _ = _s6_forward(A, h, chunks)
    return y, last


def _s6_fwd(A, h, chunks):
    y, last, borders = _s6_forward(A, h, chunks)
    return (y, last), (A, borders, chunks)


def _s6_bwd(kept, cotangents):
    """Adjoint recurrence, chunk by chunk from the end.

    With g_t the gradient of h_t: g_t = C_t dy_t + a_{t+1} g_{t+1}. Token by token on CPU, where
    what a token needs stays in a core's cache.
    """
    A, borders, chunks = kept

    def body(carry, chunk):
        before, inputs, dy = chunk
        u, dt, B, C, starts = (x.astype(dy.dtype) if x.dtype != bool else x for x in inputs)
        a, h = _s6_inside(A, before, u, dt, B, starts)
        previous = jnp.concatenate([before[None], h[:-1]])
        carry, gradients = jax.lax.platform_dependent(
            *(A, carry, (a, h, previous, u, dt, B, C, dy)),
            cpu=_s6_adjoint_by_token,
            default=_s6_adjoint_at_once,
        )
        d_input, d_dt, dB, dC = gradients
        gradients = (d_input * dt, d_dt + d_input * u, dB, dC)
        return carry, tuple(
            x.astype(primal.dtype) for x, primal in zip(gradients, inputs, strict=False)
        )

    dy, dlast = cotangents
    (dh, dA), gradients = jax.lax.scan(
        body, (dlast, jnp.zeros_like(A)), (borders, chunks, dy), reverse=True
    )
    return dA, dh, (*gradients, None)


def _s6_adjoint_by_token(A, carry, chunk):
    """Gradients of one chunk: ((s, dA), those of dt u, of log a by dt, of B and of C).

    carry: s = a_{t+1} g_{t+1} of the chunk that follows, and dA so far.
    """

    def step(carry, token):
        (s, dA), (a, h, previous, u, dt, B, C, dy) = carry, token
        g = C[..., None] * dy[:, None] + s
        s = a * g
        decay = s * previous  # gradient of log a = dt A
        gradients = (
            jnp.einsum("bne,bn->be", g, B),
            jnp.einsum("bne,bn->be", decay * A, jnp.ones_like(B)),
            jnp.einsum("bne,be->bn", g, dt * u),
            jnp.einsum("bne,be->bn", h, dy),
        )
        return (s, dA + (decay * dt[:, None]).sum(0)), gradients

    return jax.lax.scan(step, carry, chunk, reverse=True)


def _s6_adjoint_at_once(A, carry, chunk):
    """What `_s6_adjoint_by_token` computes, with one associative scan over the chunk."""
    (s, dA), (a, h, previous, u, dt, B, C, dy) = carry, chunk
    Cdy = C[..., None] * dy[:, :, None]
    s_all = _parallel(a, a * Cdy, s, reverse=True)
    g = Cdy + jnp.concatenate([s_all[1:], s[None]])
    decay = s_all * previous
    gradients = (
        jnp.einsum("qbne,qbn->qbe", g, B),
        jnp.einsum("qbne,qbn->qbe", decay * A, jnp.ones_like(B)),
        jnp.einsum("qbne,qbe->qbn", g, dt * u),
        jnp.einsum("qbne,qbe->qbn", h, dy),
    )
    return (s_all[0], dA + jnp.einsum("qbne,qbe->ne", decay, dt)), gradients


_s6.defvjp(_s6_fwd, _s6_bwd)


def _ssd_step(A, h, x, dt, B, C):
    """One token: A [H]; h [B, H, P, N]; x [B, H, P]; dt [B, H]; B, C [B, G, N] -> y as x, h."""
    B, C = (jnp.repeat(z, x.shape[1] // z.shape[1], axis=1) for z in (B, C))
    h = jnp.exp(dt * A)[..., None, None] * h + (dt[..., None] * x)[..., None] * B[:, :, None]
    return jnp.einsum("bhpn,bhn->bhp", h, C), h


def _ssd(A, h, chunks):
    """Return the last state, and y [chunks, Q, B, G, R, P].

    One by one on CPU, whose caches hold a chunk; elsewhere all at once, to fill the device.
    """
    if jax.default_backend() == "cpu":
        body = jax.checkpoint(functools.partial(_ssd_chunk, A), prevent_cse=False)
        return jax.lax.scan(body, h, chunks)
    return jax.checkpoint(_ssd_at_once)(A, h, chunks)


def _ssd_at_once(A, h, chunks):
    """Matmuls of all chunks, then a scan over their states alone (Dao & Gu 2024, listing 1)."""
    y, carried, added = jax.vmap(functools.partial(_ssd_inside, A, h.dtype))(chunks)

    def step(h, chunk):
        carried, added = chunk
        return carried[-1][..., None, None] * h + added, h

    last, before = jax.lax.scan(step, h, (carried, added))
    return last, y + jax.vmap(_ssd_carried)(before, chunks[3], carried)


def _ssd_chunk(A, h, chunk):
    """One chunk from the state h [B, G, R, P, N]: return the state after it, and y."""
    y, carried, added = _ssd_inside(A, h.dtype, chunk)
    return carried[-1][..., None, None] * h + added, y + _ssd_carried(h, chunk[3], carried)


def _ssd_carried(h, C, carried):
    """What the state h before a chunk adds to its y."""
    return jnp.einsum("qbgn,bgrpn->qbgrp", C.astype(h.dtype), h) * carried[..., None]


def _ssd_inside(A, dtype, chunk):
    """One chunk of SSD without the state before it (Dao & Gu 2024, section 6).

    x [Q, B, G, R, P]; dt [Q, B, G, R]; B, C [Q, B, G, N]. Returns y, the decay of the state before
    until every token [Q, B, G, R], and what the chunk adds to the state after it [B, G, R, P, N].
    """
    x, dt, B, C, starts = (z.astype(dtype) if z.dtype != bool else z for z in chunk)
    # document of every token, numbered within the chunk; the state before it belongs to 0
    run = jnp.cumsum(starts, axis=0)
    log_decay = jnp.cumsum(dt * A, axis=0)
    total, dtx = log_decay[-1], dt[..., None] * x
    # [Q, S, B]: whether q sees s
    sees = (run[:, None] == run[None]) & jnp.tril(jnp.ones((len(run),) * 2, bool))[..., None]
    decay = jnp.exp(
        jnp.where(sees[..., None, None], log_decay[:, None] - log_decay[None], -jnp.inf)
    )
    scores = jnp.einsum("qbgn,sbgn->qsbg", C, B)
    y = jnp.einsum("qsbgr,sbgrp->qbgrp", scores[..., None] * decay, dtx)
    carried = jnp.where((run == 0)[..., None, None], jnp.exp(log_decay), 0)
    kept = jnp.where((run == run[-1])[..., None, None], jnp.exp(total - log_decay), 0)
    return y, carried, jnp.einsum("qbgrp,qbgn->bgrpn", dtx * kept[..., None], B)
