"""Log-likelihood of a continuation given a context, or of a whole text in windows."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch
from lm.generation.requests import bucket
from lm.losses import cross_entropy
from lm.losses.tokens import head_of
from lm.models import LanguageModel, inputs
from lm.models.config import ConfigError

AT_ONCE = 32  # positions whose logits exist at one time; divides the sizes of `bucket`

Pair = tuple[Sequence[int], Sequence[int]]  # context, continuation
# (model, params, batch) -> -log p of the targets, float32 [B, T], and what else is wanted of them
Observe = Callable[[Any, dict, Batch], tuple[jax.Array, jax.Array]]


def log_likelihoods(
    model: LanguageModel,
    params: dict,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
    tokenizer=None,
) -> list[tuple[float, bool]]:
    """Return each continuation's log-probability in nats, and whether greedy decoding gives it.

    pairs: token ids, neither empty. A decoder reads both. In an encoder-decoder the encoder reads
    the context, and the decoder the continuation after its start token. A context that is too long
    loses its beginning. Pairs of similar length run together, `batch_size` at a time;
    `on_batch(number)` is called as they finish.

    Raises ValueError for a pair that cannot be scored. Raises ConfigError for a model without a
    causal language-model head, and for ids without an embedding, which `tokenizer` names.
    """
    found = token_log_likelihoods(
        model, params, pairs, batch_size=batch_size, on_batch=on_batch, tokenizer=tokenizer
    )
    return [(float(each.sum(dtype=np.float64)), bool(greedy.all())) for each, greedy in found]


def token_log_likelihoods(
    model: LanguageModel,
    params: dict,
    pairs: Sequence[Pair],
    encoder_segments: Sequence[Sequence[int]] = (),
    *,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
    tokenizer=None,
    observe: Observe | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return `log_likelihoods` of each token: float32 [n] and bool [n] for each continuation.

    observe: gives the losses and, instead of what is greedy, anything [B, T, ...] of the targets.
    encoder_segments: for each pair, the number of the passage, from 1, of each of its context's
    tokens, or (); passages are encoded apart, and the decoder reads all of them.
    """
    observe = observe or _scores
    inputs.check_ids(
        model.config,
        ([*context, *continuation] for context, continuation in pairs),
        tokenizer,
        "pair",
    )
    passages = [list(each) for each in encoder_segments] or [[] for _ in pairs]
    rows = [
        _row(model.config, i, *pair, apart)
        for i, (pair, apart) in enumerate(zip(pairs, passages, strict=True))
    ]
    order = sorted(range(len(rows)), key=lambda i: -max(map(len, rows[i])))
    found = [(np.zeros(0, np.float32), np.zeros(0, bool))] * len(rows)
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        batch = _batch([rows[i] for i in members], min(batch_size, len(rows)))
        inputs.check(model.config, batch)
        losses, hits = jax.device_get(observe(model, params, batch))
        for at, i in enumerate(members):
            length, scored = len(rows[i][0]), len(pairs[i][1])
            inside = slice(length - scored, length)
            found[i] = -losses[at, inside], hits[at, inside]
        if on_batch is not None:
            on_batch(len(members))
    return found


def windows(tokens: Sequence[int], prefix: int, length: int) -> Iterator[Pair]:
    """Split a text into (context, continuation) pairs that predict every token once.

    The first token follows `prefix`. A pair has at most `length` + 1 tokens. Continuations are
    consecutive; the last window has as much context as fits. This division is that of
    lm-evaluation-harness, whose scores depend on it.
    """
    for start in range(0, len(tokens), length):
        end = min(start + length, len(tokens))
        begin = max(0, end - length)
        yield [prefix if begin == 0 else tokens[begin - 1], *tokens[begin:start]], tokens[start:end]


def _row(
    c, number: int, context: Sequence[int], continuation: Sequence[int], passages: list[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return the model's input, its targets, the encoder's input, if it has one, and its segments.

    passages: segments of the context, [] = one.
    """
    if c.head not in ("causal_lm", "seq2seq_lm"):
        raise ConfigError(
            f"a {c.family} model with head={c.head!r} gives no likelihood of what follows: "
            "expected causal_lm or seq2seq_lm; python -m lm.evaluate gives a masked one its "
            "pseudo-perplexity"
        )
    context, continuation = list(context), list(continuation)
    if not context or not continuation:
        raise ValueError(
            f"pair {number}: the {'continuation' if context else 'context'} has no tokens; "
            "expected at least one"
        )
    if len(continuation) > c.max_length:
        raise ValueError(
            f"pair {number}: a continuation of {len(continuation)} tokens is longer than the "
            f"{c.max_length} this model reads: "
            "score it as a whole text, which is read in windows"
        )
    if c.encoder_layers:
        if c.decoder_start_token_id is None:
            raise ConfigError(
                f"this {c.family} model names no decoder_start_token_id, after which its decoder "
                "would begin"
            )
        if passages and len(passages) != len(context):
            raise ValueError(
                f"pair {number}: {len(context)} tokens of context and {len(passages)} "
                "encoder_segments: give each token the number of its passage"
            )
        if not passages:
            context = context[-c.max_length :]
        return (
            [c.decoder_start_token_id, *continuation[:-1]],
            continuation,
            context,
            passages or [1] * len(context),
        )
    both = (context + continuation)[-(c.max_length + 1) :]
    return both[:-1], both[1:], [], []


def _batch(rows: Sequence[tuple[list[int], ...]], size: int) -> Batch:
    """Batch rows of one document each, whose encoder's segments all belong to it.

    They are padded on the right to one of few lengths, and with empty rows to `size`.
    """

    def padded(lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((size, bucket(max(map(len, lists)))), np.int32)
        segments = np.zeros_like(tokens)
        for at, values in enumerate(lists):
            tokens[at, : len(values)], segments[at, : len(values)] = values, 1
        return tokens, segments

    read, wanted, encoded, passages = zip(*rows, strict=True)
    tokens, segments = padded(read)
    given = {}
    if any(encoded):
        given["encoder_tokens"], owners = padded(encoded)
        given["encoder_segments"] = padded(passages)[0]
        if any(numbers[-1] > 1 for numbers in passages):
            given["encoder_owners"] = owners
    return Batch.of(tokens, segments, targets=padded(wanted)[0], **given)


@functools.partial(jax.jit, static_argnames="model")
def _scores(model: Any, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Compute -log p(target), float32 [B, T], and whether the target has the highest logit."""
    hidden = model.apply({"params": params}, batch, method="hidden").hidden
    logits, head = head_of(model, params)

    def at_once(xs):
        scores = logits(head, xs[0])
        return cross_entropy.token_losses(scores, xs[1]), scores.argmax(axis=-1) == xs[1]

    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0], -1, AT_ONCE, *x.shape[2:]), 1, 0)

    def joined(x):
        return jnp.moveaxis(x, 0, 1).reshape(batch.targets.shape)

    losses, hits = jax.lax.map(at_once, (split(hidden), split(batch.targets)))
    return joined(losses), joined(hits)
