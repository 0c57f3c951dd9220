"""Prefill and one compiled decoding loop. Prompts are padded on the left, so that every row writes the same cache slot."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch
from lm.generation.samplers import Greedy
from lm.models import LanguageModel, init_cache, separate


class GenerationError(ValueError):
    """A prompt or a budget that cannot be served; the message says which and why."""


def prefill(model: LanguageModel, params: dict, tokens_BT, segments_BT, length: int) -> tuple[jax.Array, dict]:
    """Reads left-padded prompts into a new cache of `length` slots: float32 logits [B, V] of what follows, and the cache.

    tokens int32 [B, T]; segments int32 [B, T], 1 for prompt tokens and 0 for the padding before them.
    """
    positions = jnp.maximum(jnp.cumsum(segments_BT, axis=1) - 1, 0)
    batch = Batch(tokens=tokens_BT, targets=tokens_BT, weights=segments_BT, segments=segments_BT, positions=positions)
    out = _apply(model, params, batch, init_cache(model.config, tokens_BT.shape[0], length), method="hidden")
    return _apply(model, params, out.hidden[:, -1], method="logits"), out.cache


def decode_step(model: LanguageModel, params: dict, tokens_B, positions_B, cache: dict) -> tuple[jax.Array, dict]:
    """Feeds one token a row, at its position, and returns the logits [B, V] of the next one with the longer cache."""
    tokens, positions = tokens_B[:, None], positions_B[:, None]
    one = jnp.ones_like(tokens)
    batch = Batch(tokens=tokens, targets=tokens, weights=one, segments=one, positions=positions)
    out = _apply(model, params, batch, cache, method="hidden")
    return _apply(model, params, out.hidden[:, 0], method="logits"), out.cache


def _apply(model, params, *args, method: str) -> Any:
    return model.apply({"params": params}, *args, method=method)


@functools.partial(jax.jit, static_argnames=("model", "sampler", "budget"))
def _start(model, sampler, budget, params, tokens_BT, segments_BT, done_B, stop_K, key):
    logits, cache = prefill(model, params, tokens_BT, segments_BT, tokens_BT.shape[1] + budget)
    state = {
        "cache": cache, "positions": segments_BT.sum(axis=1), "done": done_B, "key": key, "count": jnp.int32(0),
        "tokens": jnp.zeros((tokens_BT.shape[0], budget), jnp.int32), "lengths": jnp.zeros_like(done_B, jnp.int32),
    }  # fmt: skip
    return _choose(sampler, state, logits, stop_K)


def _choose(sampler, state, logits, stop_K):
    """Appends the sampler's token to every row that is not done; a stop token ends its row and is not counted."""
    key, now = jax.random.split(state["key"])
    token = sampler(logits, now)
    done = state["done"] | jnp.isin(token, stop_K)
    tokens = jax.lax.dynamic_update_slice_in_dim(state["tokens"], token[:, None], state["count"], axis=1)
    lengths = jnp.where(done, state["lengths"], state["count"] + 1)
    return state | {"key": key, "done": done, "tokens": tokens, "lengths": lengths, "last": token, "count": state["count"] + 1}


@functools.partial(jax.jit, static_argnames=("model", "sampler"), donate_argnames="state")
def _continue(model, sampler, params, state, stop_K, until):
    """Decodes until every row is done or holds `until` tokens."""

    def step(state):
        logits, cache = decode_step(model, params, state["last"], state["positions"] + state["count"] - 1, state["cache"])
        return _choose(sampler, state | {"cache": cache}, logits, stop_K)

    return jax.lax.while_loop(lambda s: (s["count"] < until) & ~s["done"].all(), step, state)


def bucket(n: int) -> int:
    """The padded size of n: few sizes to compile for, at most a quarter wasted beyond 128 (multiples of 32, then coarser)."""
    step = max(32, 2 ** (max(n, 1).bit_length() - 3))
    return -(-n // step) * step


def _validate(model, prompts, max_new_tokens):
    c = model.config
    if c.head != "causal_lm":
        raise GenerationError(f"a {c.family} model with head={c.head!r} does not generate text; expected head='causal_lm'")
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens={max_new_tokens}: expected at least 1")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise GenerationError(f"prompt {i} is empty: give at least one token (a start token, for example)")
        if len(prompt) + max_new_tokens > c.max_length:
            raise GenerationError(
                f"prompt {i} has {len(prompt)} tokens and {max_new_tokens} more are asked for, but this model's context is "
                f"{c.max_length} tokens: shorten the prompt or lower max_new_tokens"
            )
        if not 0 <= min(prompt) <= max(prompt) < c.vocab_size:
            raise GenerationError(f"prompt {i} holds token {max(prompt)}, outside the vocabulary of {c.vocab_size}: wrong tokenizer?")


def _prepare(model, params, prompts, rows, max_new_tokens, sampler, stop_tokens, seed):
    """Prefills `prompts`, padded with finished rows to `rows` rows; returns the stop tokens and the decoding state."""
    width = bucket(max(map(len, prompts)))
    tokens, segments = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.int32)
    for i in range(rows):
        prompt = prompts[i] if i < len(prompts) else prompts[0]
        tokens[i, width - len(prompt) :], segments[i, width - len(prompt) :] = prompt, 1
    done = np.arange(rows) >= len(prompts)
    stop = np.asarray(sorted(set(stop_tokens)) or [-1], np.int32)
    return stop, _start(model, sampler, bucket(max_new_tokens), params, tokens, segments, done, stop, jax.random.key(seed))


def generate(
    model: LanguageModel, params: dict, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampler=Greedy(), *,
    stop_tokens: Sequence[int] | None = None, seed: int = 0, batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Continues every prompt by at most `max_new_tokens` tokens.

    prompts: token lists of any lengths; each gets what it would get alone. stop_tokens: ids that end an answer and are not
    returned (None: the model's `eos_token_ids`). At most `batch_size` prompts of similar length run together, and
    `on_batch(number)` is called as batches finish. Sampling is deterministic in `seed` and the order of the prompts.
    Returns the new tokens of each prompt. Raises GenerationError before anything compiles when a prompt cannot be served.
    """
    _validate(model, prompts, max_new_tokens)
    stop_tokens = model.config.eos_token_ids if stop_tokens is None else stop_tokens
    model, params = separate(model, params)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rows = min(batch_size, len(prompts))
    answers: list[list[int]] = [[] for _ in prompts]
    for first in range(0, len(order), max(rows, 1)):
        members = order[first : first + rows]
        stop, state = _prepare(model, params, [prompts[i] for i in members], rows, max_new_tokens, sampler, stop_tokens, seed + first)
        state = _continue(model, sampler, params, state, stop, max_new_tokens)
        tokens, lengths = jax.device_get((state["tokens"], state["lengths"]))
        for row, i in enumerate(members):
            answers[i] = tokens[row, : lengths[row]].tolist()
        if on_batch is not None:
            on_batch(len(members))
    return answers


def stream(
    model: LanguageModel, params: dict, prompt: Sequence[int], max_new_tokens: int, sampler=Greedy(), *,
    stop_tokens: Sequence[int] | None = None, seed: int = 0,
) -> Iterator[int]:  # fmt: skip
    """Yields the tokens that `generate` would return for one prompt, each as soon as it is there."""
    _validate(model, [prompt], max_new_tokens)
    stop_tokens = model.config.eos_token_ids if stop_tokens is None else stop_tokens
    model, params = separate(model, params)
    stop, state = _prepare(model, params, [prompt], 1, max_new_tokens, sampler, stop_tokens, seed)
    for count in range(1, max_new_tokens + 1):
        state = _continue(model, sampler, params, state, stop, count)
        if state["done"][0]:
            return
        yield int(state["last"][0])
