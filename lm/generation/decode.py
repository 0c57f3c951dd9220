"""Prefill and decode step for every architecture, and what they show of the hidden states."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.batch import Batch
from lm.models import LanguageModel, ModelConfig, init_cache
from lm.models.taps import tapped


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
    given = {} if encoder_tokens is None else {"encoder_tokens": encoder_tokens}
    if encoder_segments is not None:
        given["encoder_segments"] = encoder_segments
    return read_prompts(model, params, tokens, segments, length, given)[:2]


def read_prompts(
    model, params, tokens, segments, length: int, inputs: dict, taps: tuple[str, ...] = ()
) -> tuple[jax.Array, dict, dict]:
    """Read prompts as `prefill` does; also return the taps at their last tokens.

    The segments of a row's tokens may be any number above 0. inputs: further fields of the batch.
    taps: of `lm.models.taps.TAPS`.
    """
    fields: dict[str, Any] = {
        "tokens": tokens,
        "targets": tokens,
        "weights": segments,
        "segments": segments,
        "positions": _positions(segments),
        **inputs,
    }
    encoder_length = 0
    if "encoder_tokens" in inputs:
        of = fields.setdefault("encoder_segments", jnp.ones_like(inputs["encoder_tokens"]))
        fields["encoder_positions"] = _within(of)
        encoder_length = of.shape[1]
    cache = init_cache(model.config, tokens.shape[0], length, encoder_length)
    return _read(model, params, Batch(**fields), cache, taps)


def decode_step(
    model: LanguageModel, params: dict, tokens_B, positions_B, cache: dict
) -> tuple[jax.Array, dict]:
    """Read one token per row, at its position; return the next logits [B, V] and the new cache."""
    one = jnp.ones_like(tokens_B)
    return read_tokens(model, params, tokens_B, positions_B, one, cache, {})[:2]


def read_tokens(
    model,
    params,
    tokens_B,
    positions_B,
    segments_B,
    cache: dict,
    inputs: dict,
    taps: tuple[str, ...] = (),
) -> tuple[jax.Array, dict, dict]:
    """Read one token per row as `decode_step` does, in the segment of its row's prompt.

    Also returns the taps. inputs: further fields of the batch, such as neighbours.
    """
    tokens, positions, segments = tokens_B[:, None], positions_B[:, None], segments_B[:, None]
    batch = Batch(
        tokens=tokens,
        targets=tokens,
        weights=segments,
        segments=segments,
        positions=positions,
        **inputs,
    )
    return _read(model, params, batch, cache, taps)


def _positions(segments_BT) -> jax.Array:
    return jnp.maximum(jnp.cumsum(segments_BT > 0, axis=1, dtype=jnp.int32) - 1, 0)


def _within(segments_BT) -> jax.Array:
    """Position of every token within its segment."""
    index = jnp.arange(segments_BT.shape[1])
    starts = segments_BT != jnp.pad(segments_BT[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def _read(model, params, batch, cache, taps) -> tuple[jax.Array, dict, dict]:
    out, found = tapped(model, params, batch, cache, taps)
    last: Any = out.hidden[:, -1]
    logits: Any = model.apply({"params": params}, last, method="logits")
    new: Any = out.cache
    return logits, new, {name: x[:, -1] for name, x in found.items()}


def everywhere(x: jax.Array) -> jax.Array:
    """Put a whole array on every device of the active mesh, where every process can read it."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


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
