"""Batch and Output: field names shared by data, models and tasks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Field:
    """Names of a batch field's axes, and its dtype.

    Rows that belong together, such as two answers to one prompt, are a group: their fields have one
    more axis, `group`, after `batch`. Micro-batches and devices split `batch` alone.
    """

    axes: tuple[str, ...]
    dtype: type[np.generic] = np.int32

    def names(self, ndim: int) -> tuple[str, ...]:
        """Names of the axes of an array [B, ...] or [B, G, ...] with `ndim` axes.

        Raises ValueError for another number of axes.
        """
        if ndim not in (len(self.axes), len(self.axes) + 1):
            raise ValueError(f"expected the axes {self.axes}, with or without group after batch")
        return self.axes if ndim == len(self.axes) else ("batch", "group", *self.axes[1:])


TEXT, ENCODER_TEXT = ("batch", "length"), ("batch", "encoder_length")
FIELDS = {
    "tokens": Field(TEXT),
    "targets": Field(TEXT),
    "weights": Field(TEXT, np.float32),
    "segments": Field(TEXT),
    "positions": Field(TEXT),
    "types": Field(TEXT),
    "encoder_tokens": Field(ENCODER_TEXT),
    "encoder_segments": Field(ENCODER_TEXT),
    "encoder_positions": Field(ENCODER_TEXT),
    "encoder_owners": Field(ENCODER_TEXT),
    "neighbours": Field(("batch", "chunk", "neighbour_length", "neighbour_width"), np.float32),
    "neighbour_segments": Field(("batch", "chunk", "neighbour_length")),
    "labels": Field(("batch", "labels"), np.float32),
}


@flax.struct.dataclass
class Batch:
    """Rows of packed documents. Arrays are [B, T], and [B, S] on the encoder side.

    tokens: int32 token ids. targets: int32, token to predict at each position.
    weights: float32 loss weight. positions: int32 position within the document.
    segments: int32 document number within the row, from 1; 0 = padding.
    types: int32 token types (BERT) or None.

    encoder_tokens, encoder_segments, encoder_positions: the same for an encoder's input. A decoder
    token attends to the encoder tokens of its own segment.
    encoder_owners: int32 [B, S], segment of the decoder that reads each encoder token; None =
    encoder_segments. So passages that are encoded apart, each a segment of its own, may all belong
    to one question (Izacard & Grave 2021, fusion in decoder).
    neighbours: [B, C, S, N] vectors of the tokens retrieved for each of C chunks of the row.
    neighbour_segments: int32 [B, C, S], segment that each belongs to, 0 = padding.
    labels: float32 [B, K], label of the row: a class or a value (K = 1), or the first and last
    token of an answer (K = 2).
    more: fields that a task declares (`Task.new_fields`), by name.
    """

    tokens: jax.Array
    targets: jax.Array
    weights: jax.Array
    segments: jax.Array
    positions: jax.Array
    types: jax.Array | None = None
    encoder_tokens: jax.Array | None = None
    encoder_segments: jax.Array | None = None
    encoder_positions: jax.Array | None = None
    encoder_owners: jax.Array | None = None
    neighbours: jax.Array | None = None
    neighbour_segments: jax.Array | None = None
    labels: jax.Array | None = None
    more: dict[str, jax.Array] | None = None

    @classmethod
    def made(cls, fields: Mapping[str, Any]) -> "Batch":
        """Batch of these fields; those that are no attribute are in `more`."""
        own = {field.name for field in dataclasses.fields(cls)}
        more = {name: value for name, value in fields.items() if name not in own}
        known = {name: value for name, value in fields.items() if name in own}
        return cls(**known, **({"more": more} if more else {}))

    def fields(self) -> dict[str, jax.Array]:
        """The fields that are set, those of `more` included."""
        own = {name: value for name, value in vars(self).items() if name != "more"}
        return {name: x for name, x in (own | (self.more or {})).items() if x is not None}

    def ungrouped(self) -> "Batch":
        """The rows of all groups as rows of one batch: fields [B, G, ...] become [B * G, ...]."""
        grouped = self.tokens.ndim > len(FIELDS["tokens"].axes)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self) if grouped else self

    @classmethod
    def of(
        cls,
        tokens,
        segments=None,
        *,
        targets=None,
        weights=None,
        positions=None,
        types=None,
        encoder_tokens=None,
        encoder_segments=None,
        encoder_positions=None,
        encoder_owners=None,
        neighbours=None,
        neighbour_segments=None,
        more=None,
    ) -> "Batch":
        """Make a batch, with defaults for missing fields.

        more: further fields, by name.

        Defaults: one document per row, positions from the start of each document, next-token
        targets, and weight 1 where the next token is in the same document, else 0. So no document
        predicts the first token of another. Raises ValueError for a shape that differs from that of
        `tokens`.
        """
        tokens, segments, positions = _row("tokens", tokens, segments, positions)
        following = np.pad(segments[:, 1:], ((0, 0), (0, 1)))
        given: dict[str, Any] = dict(
            tokens=tokens,
            segments=segments,
            positions=positions,
            targets=np.pad(tokens[:, 1:], ((0, 0), (0, 1)))
            if targets is None
            else np.asarray(targets, np.int32),
            weights=np.asarray(
                (segments > 0) & (following == segments) if weights is None else weights, np.float32
            ),
        )
        if types is not None:
            given["types"] = np.asarray(types, np.int32)
        for name, value in given.items():
            if value.shape != tokens.shape:
                raise ValueError(
                    f"{name} have shape {value.shape}, tokens {tokens.shape}; they must be equal"
                )
        if encoder_tokens is not None:
            row = _row("encoder_tokens", encoder_tokens, encoder_segments, encoder_positions)
            if len(row[0]) != len(tokens):
                raise ValueError(
                    f"encoder_tokens have {len(row[0])} rows, tokens {len(tokens)}; every row "
                    "needs both"
                )
            given |= dict(
                zip(("encoder_tokens", "encoder_segments", "encoder_positions"), row, strict=True)
            )
            if encoder_owners is not None:
                given["encoder_owners"] = owners = np.asarray(encoder_owners, np.int32)
                if owners.shape != np.shape(row[0]):
                    raise ValueError(
                        f"encoder_owners have shape {owners.shape}, encoder_tokens "
                        f"{np.shape(row[0])}; they must be equal"
                    )
        if neighbours is not None:
            of = (
                np.ones(np.shape(neighbours)[:3], np.int32)
                if neighbour_segments is None
                else np.asarray(neighbour_segments, np.int32)
            )
            if (
                np.ndim(neighbours) != 4
                or of.shape != np.shape(neighbours)[:3]
                or len(of) != len(tokens)
            ):
                raise ValueError(
                    f"neighbours have shape {np.shape(neighbours)} and neighbour_segments "
                    f"{of.shape}; expected [B, C, S, N] and [B, C, S] "
                    f"with B = {len(tokens)}, the rows of tokens"
                )
            given |= dict(neighbours=neighbours, neighbour_segments=of)
        return cls(**given, more=None if more is None else dict(more))


def _row(what: str, tokens, segments, positions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, segments, positions), int32 [B, T] each, with the defaults of `Batch.of`."""
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2:
        raise ValueError(
            f"{what} have shape {tokens.shape}; expected [B, T]: pad the rows to one length "
            "(segments 0 = padding)"
        )
    segments = np.ones_like(tokens) if segments is None else np.asarray(segments, np.int32)
    index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    if segments.shape == tokens.shape and positions is None:
        starts = np.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
    for name, value in (("segments", segments), ("positions", positions)):
        if np.shape(value) != tokens.shape:
            raise ValueError(
                f"{what.replace('tokens', name)} have shape {np.shape(value)}, {what} "
                f"{tokens.shape}; they must be equal"
            )
    return tokens, segments, np.asarray(positions, np.int32)


@flax.struct.dataclass
class Output:
    """Result of a forward pass.

    logits: float32 [B, T, V], or what the head gives (see `LanguageModel`), or None.
    hidden: [B, T, D]. pooled: [B, D] or None.
    encoder_hidden: [B, S, D] if the encoder of an encoder-decoder was run, else None.
    """

    logits: jax.Array | None
    hidden: jax.Array
    pooled: jax.Array | None = None
    encoder_hidden: jax.Array | None = None
    cache: object = None
