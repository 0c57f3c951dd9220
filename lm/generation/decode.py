"""Prefill, decode step and a compiled decoding loop, for every architecture."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lm.batch import Batch
from lm.models import LanguageModel, ModelConfig, init_cache


def prefill(
    model: LanguageModel,
    params: dict,
    tokens,
    segments,
    length: int,
    *,
    encoder_tokens=None,
    encoder_segments=None,
) -> tuple[jax.Array, dict]:
    """Read left-padded prompts into a new cache of `length` slots.

    Returns float32 logits [B, V] of the next token, and the cache. tokens int32 [B, T]; segments
    int32 [B, T], 1 for prompt tokens and 0 for the padding before them. An encoder-decoder also
    reads encoder_tokens int32 [B, S] once, with encoder_segments [B, S] (0 for padding; None: no
    padding); the cache keeps what decoding needs of them.
    """
    encoder_length = 0
    given: dict[str, Any] = {}
    if encoder_tokens is not None:
        of = jnp.ones_like(encoder_tokens) if encoder_segments is None else encoder_segments
        given = {
            "encoder_tokens": encoder_tokens,
            "encoder_segments": of,
            "encoder_positions": _positions(of),
        }
        encoder_length = encoder_tokens.shape[1]
    batch = Batch(
        tokens=tokens,
        targets=tokens,
        weights=segments,
        segments=segments,
        positions=_positions(segments),
        **given,
    )
    out = _apply(
        model,
        params,
        batch,
        init_cache(model.config, tokens.shape[0], length, encoder_length),
        method="hidden",
    )
    return _apply(model, params, out.hidden[:, -1], method="logits"), out.cache


def decode_step(
    model: LanguageModel, params: dict, tokens_B, positions_B, cache: dict
) -> tuple[jax.Array, dict]:
    """Read one token per row, at its position; return the next logits [B, V] and the new cache."""
    tokens, positions = tokens_B[:, None], positions_B[:, None]
    one = jnp.ones_like(tokens)
    batch = Batch(tokens=tokens, targets=tokens, weights=one, segments=one, positions=positions)
    out = _apply(model, params, batch, cache, method="hidden")
    return _apply(model, params, out.hidden[:, 0], method="logits"), out.cache


def _positions(segments_BT) -> jax.Array:
    return jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0)


def _apply(model, params, *args, method: str) -> Any:
    return model.apply({"params": params}, *args, method=method)


def force(c: ModelConfig, logits: jax.Array, so_far: jax.Array, left: jax.Array) -> jax.Array:
    """Force the tokens that the config names, in logits [B, ..., V].

    These are the first token after a lone start token, and the last token of the budget. so_far,
    left: int32 [B], the row's tokens including the prompt, and the tokens that it may still get.
    """
    for token, there in ((c.forced_bos_token_id, so_far == 1), (c.forced_eos_token_id, left == 1)):
        if token is not None:
            only = jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, -jnp.inf)
            logits = jnp.where(there.reshape(-1, *(1,) * (logits.ndim - 1)), only, logits)
    return logits


@functools.partial(jax.jit, static_argnames=("model", "sampler", "room"))
def start(model, sampler, room, params, arrays, stop_K, key) -> dict:
    """Return the state after the first new token of every row.

    arrays: see `padded`. room: upper bound of their budgets.
    """
    arrays = dict(arrays)
    budgets = arrays.pop("budgets")
    rows, width = arrays["tokens"].shape
    logits, cache = prefill(model, params, length=width + room, **arrays)
    state = {
        "cache": cache,
        "positions": arrays["segments"].sum(axis=1),
        "key": key,
        "count": jnp.int32(0),
        "budgets": budgets,
        "done": budgets < 1,
        "tokens": jnp.zeros((rows, room), jnp.int32),
        "lengths": jnp.zeros_like(budgets),
    }
    if getattr(sampler, "repetition_penalty", 1.0) != 1.0:
        seen = jnp.zeros(logits.shape, bool)
        state["seen"] = seen.at[jnp.arange(rows)[:, None], arrays["tokens"]].max(
            arrays["segments"] > 0
        )
    return _choose(model.config, sampler, state, logits, stop_K)


def _choose(c, sampler, state, logits, stop_K):
    """Append the sampler's token to every unfinished row.

    A stop token ends its row and is not counted.
    """
    key, now = jax.random.split(state["key"])
    count, seen = state["count"], state.get("seen")
    logits = force(c, logits, state["positions"] + count, state["budgets"] - count)
    token = sampler(logits, now) if seen is None else sampler(logits, now, seen)
    stopped = state["done"] | jnp.isin(token, stop_K)
    state = state | {
        "key": key,
        "last": token,
        "count": count + 1,
        "done": stopped | (count + 1 >= state["budgets"]),
        "tokens": jax.lax.dynamic_update_slice_in_dim(
            state["tokens"], token[:, None], count, axis=1
        ),
        "lengths": jnp.where(stopped, state["lengths"], count + 1),
    }
    return (
        state
        if seen is None
        else state | {"seen": seen.at[jnp.arange(len(token)), token].set(True)}
    )


@functools.partial(jax.jit, static_argnames=("model", "sampler"), donate_argnames="state")
def advance(model, sampler, params, state, stop_K, until) -> dict:
    """Decode until every row is done or `until` tokens were chosen."""

    def step(state):
        logits, cache = decode_step(
            model, params, state["last"], state["positions"] + state["count"] - 1, state["cache"]
        )
        return _choose(model.config, sampler, state | {"cache": cache}, logits, stop_K)

    return jax.lax.while_loop(lambda s: (s["count"] < until) & ~s["done"].all(), step, state)
