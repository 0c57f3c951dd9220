"""Validation of ids, positions, types and labels against the sizes of the model's tables.

XLA would clamp an index outside a table and silently continue.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from lm.models.checks import LM_HEADS, ConfigError

SHOWN = 5  # values that an error message lists


def id_count(tokenizer) -> int:
    """One more than the largest token id of a tokenizer.

    It exceeds the tokenizer's length where ids were left out.
    """
    return max([len(tokenizer) - 1, *tokenizer.get_vocab().values()]) + 1


def outside(c, ids: Iterable[int], tokenizer=None) -> str:
    """Describe the token ids that the model has no embedding for; '' if there are none."""
    ids = np.fromiter(ids, np.int64)
    wrong = ids[(ids < 0) | (ids >= c.vocab_size)]
    return _unknown(c, wrong, tokenizer) if wrong.size else ""


def check_ids(
    c,
    lists: Iterable[Sequence[int]],
    tokenizer=None,
    what: str = "prompt",
    error: type[ValueError] = ConfigError,
) -> None:
    """Raise `error` for the first list that holds a token id without an embedding.

    The message names the list and its tokens.
    """
    for number, ids in enumerate(lists):
        if said := outside(c, ids, tokenizer):
            raise error(f"{what} {number} holds {said}")


def check(c, batch: Any, tokenizer=None, *, learned: bool = False) -> None:
    """Raise ConfigError when a batch (or a mapping of its fields) indexes outside a table.

    Checks tokens, and positions and types of real tokens. With `learned`, also checks what only a
    loss reads: labels, and targets with a weight. Skips traced arrays, whose values are unknown,
    and arrays that are partly on other processes.
    """
    fields = batch if isinstance(batch, Mapping) else vars(batch)
    has = f"this {c.family} model has"
    positions = (
        c.max_length if c.positions == "learned" else None,
        f"{has} learned positions 0 to {c.max_length - 1}",
    )
    labels = (c.n_labels, f"{has} {c.n_labels} labels")
    vocabulary = (c.vocab_size, "")
    targets = (
        vocabulary
        if c.head in LM_HEADS
        else labels
        if c.head == "token_classification"
        else (None, "")
    )
    targets = targets if learned else (None, "")
    for name, where, (rows, table) in (
        ("tokens", "segments", vocabulary),
        ("encoder_tokens", "encoder_segments", vocabulary),
        ("targets", "weights", targets),
        ("positions", "segments", positions),
        ("encoder_positions", "encoder_segments", positions),
        (
            "types",
            "segments",
            (c.type_vocab_size or None, f"{has} {c.type_vocab_size} token types"),
        ),
    ):
        values, real = _known(fields.get(name)), _known(fields.get(where))
        if (
            values is None
            or rows is None
            or not values.size
            or (values.min() >= 0 and values.max() < rows)
        ):
            continue
        used = values if real is None else values[real > 0]
        wrong = used[(used < 0) | (used >= rows)]
        if wrong.size:
            raise ConfigError(
                f"{name} hold "
                + (f"{_counted(wrong, str)}: {table}" if table else _unknown(c, wrong, tokenizer))
            )
    if not learned:
        return
    values, segments = _known(fields.get("labels")), _known(fields.get("segments"))
    if c.head == "question_answering" and segments is not None:
        labels = (segments.shape[-1], f"a row has {segments.shape[-1]} tokens")
    elif c.head != "sequence_classification" or c.n_labels == 1:
        return
    if values is not None and segments is not None:
        used = values[(segments > 0).any(axis=-1)]
        wrong = used[~((used >= 0) & (used < labels[0]) & (used == np.floor(used)))]
        if wrong.size:
            raise ConfigError(f"labels hold {_counted(wrong, '{:g}'.format)}: {labels[1]}")


def _known(values: Any) -> np.ndarray | None:
    if (
        values is None
        or isinstance(values, Tracer)
        or not getattr(values, "is_fully_addressable", True)
    ):
        return None
    return values if isinstance(values, np.ndarray) else np.asarray(values)


def _unknown(c, wrong: np.ndarray, tokenizer) -> str:
    named = lambda i: (
        f"token {i}"
        if tokenizer is None or i < 0
        else f"{tokenizer.convert_ids_to_tokens(i)!r} (id {i})"
    )
    return (
        f"{_counted(wrong, named)}, outside the vocabulary of {c.vocab_size}: "
        f"this {c.family} model has embeddings for ids 0 to "
        f"{c.vocab_size - 1}. Use the tokenizer that the model was trained with, "
        "without tokens that were added since"
    )


def _counted(wrong: np.ndarray, named) -> str:
    values = np.unique(wrong)
    more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return ", ".join(named(value.item()) for value in values[:SHOWN]) + more
