"""Beam search in one compiled loop, with the same bookkeeping and results as transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lm.generation.decode import decode_step, everywhere, force, prefill

NEVER = -1e9  # score of an absent beam


@dataclasses.dataclass(frozen=True)
class Beams:
    """Beam search over `n` continuations; takes the place of a sampler.

    Finished beams are ranked by the sum of their log-probabilities over length ** length_penalty;
    above 0 favours longer answers (Wu et al. 2016, section 7, but with the plain length).
    early_stopping decides when a prompt is done. True: with n finished beams. False: when no
    running beam, at its present length, would beat the worst of these. "never": when none would at
    any length.
    """

    n: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self):
        if not isinstance(self.n, int) or self.n < 2:
            raise ValueError(f"n={self.n}: expected at least 2 beams (for one use Greedy)")
        if not abs(self.length_penalty) < float("inf"):
            raise ValueError(f"length_penalty={self.length_penalty}: expected a number")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f"early_stopping={self.early_stopping!r}: expected True, False or 'never'"
            )


@functools.partial(jax.jit, static_argnames=("model", "beams", "room"))
def search(model, beams: Beams, room: int, params, arrays, stop_K) -> tuple[jax.Array, jax.Array]:
    """Return the best answer of every row of `arrays` (see `padded`).

    int32 tokens [B, room] and lengths [B], without the stop token.
    """
    arrays, n, c = dict(arrays), beams.n, model.config
    budgets = arrays.pop("budgets")
    rows, width = arrays["tokens"].shape
    prompt_lengths = arrays["segments"].sum(axis=1)
    logits, cache = prefill(model, params, length=width + room, **arrays)
    state = {
        "cache": _each_row(c, cache, lambda x, axis: jnp.repeat(x, n, axis=axis)),
        "count": jnp.int32(0),
        "tokens": jnp.zeros((rows, n, room), jnp.int32),
        # the beams start out equal, so only one counts
        "scores": jnp.broadcast_to(jnp.where(jnp.arange(n) == 0, 0.0, NEVER), (rows, n)),
        "open": budgets > 0,
        "ended": jnp.zeros((rows, n), bool),
        "ended_scores": jnp.full((rows, n), NEVER),
        "ended_tokens": jnp.zeros((rows, n, room), jnp.int32),
        "ended_lengths": jnp.zeros((rows, n), jnp.int32),
    }
    extend = functools.partial(_extend, c, beams, stop_K, budgets, prompt_lengths)

    def step(state):
        last = jax.lax.dynamic_index_in_dim(
            state["tokens"], state["count"] - 1, axis=2, keepdims=False
        )
        positions = jnp.repeat(prompt_lengths, n) + state["count"] - 1
        logits, cache = decode_step(model, params, last.reshape(-1), positions, state["cache"])
        return extend(state | {"cache": cache}, logits.reshape(rows, n, -1))

    state = extend(state, jnp.repeat(logits[:, None], n, axis=1))
    state = jax.lax.while_loop(lambda s: s["open"].any(), step, state)
    return everywhere(state["ended_tokens"][:, 0]), everywhere(state["ended_lengths"][:, 0])


def _extend(c, beams, stop_K, budgets_B, prompt_lengths_B, state, logits_BNV) -> dict:
    """Extend all beams by one token.

    The beams that end join the finished; the best others keep running.
    """
    rows, n, vocabulary = logits_BNV.shape
    count = state["count"]
    kept = max(2, 1 + len(stop_K)) * n  # enough for n running beams, whichever end
    scores = (
        force(c, jax.nn.log_softmax(logits_BNV), prompt_lengths_B + count, budgets_B - count)
        + state["scores"][:, :, None]
    )
    scores, flat = jax.lax.top_k(scores.reshape(rows, -1), min(kept, n * vocabulary))
    parent, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
    tokens = _take(state["tokens"], parent).at[:, :, count].set(token)
    stopped = jnp.isin(token, stop_K)
    ends = stopped | (count + 1 >= budgets_B)[:, None]

    length = (count + 1).astype(jnp.float32)
    # beams beyond n are only candidates to run on
    ending = ends & (jnp.arange(flat.shape[1]) < n) & state["open"][:, None]
    candidates = (
        jnp.where(ending, scores / length**beams.length_penalty, NEVER),
        ending,
        tokens,
        jnp.where(stopped, count, count + 1),
    )
    names = ("ended_scores", "ended", "ended_tokens", "ended_lengths")
    merged = [
        jnp.concatenate([state[name], new], axis=1)
        for name, new in zip(names, candidates, strict=True)
    ]
    best = jax.lax.top_k(merged[0], n)[1]
    finished = {name: _take(both, best) for name, both in zip(names, merged, strict=True)}

    running, chosen = jax.lax.top_k(scores + jnp.where(ends, NEVER, 0.0), n)
    hoped = (
        budgets_B.astype(jnp.float32)
        if beams.early_stopping == "never" and beams.length_penalty > 0
        else length
    )
    worst = jnp.where(finished["ended"].all(1), finished["ended_scores"].min(1), NEVER)
    still = (
        state["open"]
        & (running[:, 0] / hoped**beams.length_penalty > worst)
        & (count + 1 < budgets_B)
    )
    if beams.early_stopping is True:
        still &= ~finished["ended"].all(1)
    source = (jnp.arange(rows)[:, None] * n + _take(parent, chosen)).reshape(-1)
    cache = _each_row(
        c, state["cache"], lambda x, axis: jnp.take(x, source, axis=axis), shared=False
    )
    return finished | {
        "cache": cache,
        "count": count + 1,
        "tokens": _take(tokens, chosen),
        "scores": running,
        "open": still,
    }


def _take(x, index_BK):
    """Gather x [B, N, ...] -> [B, K, ...]."""
    return jnp.take_along_axis(x, index_BK.reshape(*index_BK.shape, *(1,) * (x.ndim - 2)), axis=1)


def _each_row(c, cache: dict, change, shared: bool = True) -> dict:
    """Apply change(leaf, axis of its rows) to every leaf of the cache that has rows.

    shared=False leaves out what all beams of a prompt share.
    """
    axis = 0 if c.layers == "separate" else 1
    layers = jax.tree_util.tree_map_with_path(
        lambda path, x: change(x, axis) if shared or not path[-1].key.startswith("cross_") else x,
        cache["layers"],
    )
    rest = {
        name: change(x, 0) if shared and x.ndim else x
        for name, x in cache.items()
        if name != "layers"
    }
    return {"layers": layers, **rest}
