"""Prefill, decode step, and one compiled decoding loop over them, for every architecture."""

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
    """Reads left-padded prompts into a new cache of `length` slots: float32 logits [B, V] of what follows, and the cache.

    tokens int32 [B, T]; segments int32 [B, T], 1 for prompt tokens and 0 for the padding before them. An encoder-decoder also reads
    encoder_tokens int32 [B, S] with encoder_segments [B, S] (None: no padding; elsewhere 0 for it), once: the cache keeps what
    decoding needs of them.
    """
    given, encoder_length = {}, 0
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
    """Feeds one token a row, at its position, and returns the logits [B, V] of the next one with the longer cache."""
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
    """Logits [B, ..., V] that leave no choice where the config names a token: after a lone start token, and for the last of the budget.

    so_far, left: int32 [B], the row's tokens, prompt included, and the tokens that it may still get.
    """
    for token, there in ((c.forced_bos_token_id, so_far == 1), (c.forced_eos_token_id, left == 1)):
        if token is not None:
            only = jnp.where(jnp.arange(logits.shape[-1]) == token, 0.0, -jnp.inf)
            logits = jnp.where(there.reshape(-1, *(1,) * (logits.ndim - 1)), only, logits)
    return logits


@functools.partial(jax.jit, static_argnames=("model", "sampler", "room"))
def start(model, sampler, room, params, arrays, stop_K, key) -> dict:
    """The state after the first new token of every row; `arrays` are those of `padded`, `room` bounds their budgets."""
    arrays = dict(arrays)
    budgets = arrays.pop("budgets")
    rows, width = arrays["tokens"].shape
    logits, cache = prefill(model, params, length=width + room, **arrays)
    state = {
        "cache": cache, "positions": arrays["segments"].sum(axis=1), "key": key, "count": jnp.int32(0), "budgets": budgets,
        "done": budgets < 1, "tokens": jnp.zeros((rows, room), jnp.int32), "lengths": jnp.zeros_like(budgets),
    }  # fmt: skip
    if getattr(sampler, "repetition_penalty", 1.0) != 1.0:
        seen = jnp.zeros(logits.shape, bool)
        state["seen"] = seen.at[jnp.arange(rows)[:, None], arrays["tokens"]].max(
            arrays["segments"] > 0
        )
    return _choose(model.config, sampler, state, logits, stop_K)


def _choose(c, sampler, state, logits, stop_K):
    """Appends the sampler's token to every row that is not done; a stop token ends its row and is not counted."""
    key, now = jax.random.split(state["key"])
    count, seen = state["count"], state.get("seen")
    logits = force(c, logits, state["positions"] + count, state["budgets"] - count)
    token = sampler(logits, now) if seen is None else sampler(logits, now, seen)
    stopped = state["done"] | jnp.isin(token, stop_K)
    state = state | {
        "key": key, "last": token, "count": count + 1, "done": stopped | (count + 1 >= state["budgets"]),
        "tokens": jax.lax.dynamic_update_slice_in_dim(state["tokens"], token[:, None], count, axis=1),
        "lengths": jnp.where(stopped, state["lengths"], count + 1),
    }  # fmt: skip
    return (
        state
        if seen is None
        else state | {"seen": seen.at[jnp.arange(len(token)), token].set(True)}
    )


@functools.partial(jax.jit, static_argnames=("model", "sampler"), donate_argnames="state")
def advance(model, sampler, params, state, stop_K, until) -> dict:
    """Decodes until every row is done or `until` tokens were chosen."""

    def step(state):
        logits, cache = decode_step(
            model, params, state["last"], state["positions"] + state["count"] - 1, state["cache"]
        )
        return _choose(model.config, sampler, state | {"cache": cache}, logits, stop_K)

    return jax.lax.while_loop(lambda s: (s["count"] < until) & ~s["done"].all(), step, state)
