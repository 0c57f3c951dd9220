"""Batch and Output: the one vocabulary of names that data, models and objectives share."""

from typing import Any

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class Batch:
    """Rows of packed documents; every array is [B, T].

    tokens: int32 token ids.            targets: int32, what each position should predict.
    weights: float32 loss weight.       segments: int32 document number within the row, from 1; 0 = padding.
    positions: int32 position within its document.   types: int32 token types (BERT) or None.
    """

    tokens: jax.Array
    targets: jax.Array
    weights: jax.Array
    segments: jax.Array
    positions: jax.Array
    types: jax.Array | None = None

    @classmethod
    def of(cls, tokens, segments=None, *, targets=None, weights=None, positions=None, types=None) -> "Batch":
        """Fills in what is not given: one document a row, positions from each document's start, next-token targets.

        The default weight is 1 where the next token belongs to the same document and 0 elsewhere, so that no document is
        asked to predict the first token of another. Raises ValueError when a shape is not that of `tokens`.
        """
        tokens = np.asarray(tokens, np.int32)
        if tokens.ndim != 2:
            raise ValueError(f"tokens have shape {tokens.shape}; expected [B, T]: pad the rows to one length (segments 0 = padding)")
        segments = np.ones_like(tokens) if segments is None else np.asarray(segments, np.int32)
        if segments.shape != tokens.shape:
            raise ValueError(f"segments have shape {segments.shape}, tokens {tokens.shape}; they must be equal")
        following = np.pad(segments[:, 1:], ((0, 0), (0, 1)))
        if targets is None:
            targets = np.pad(tokens[:, 1:], ((0, 0), (0, 1)))
        if weights is None:
            weights = (segments > 0) & (following == segments)
        if positions is None:
            index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
            starts = np.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
            positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
        arrays: dict[str, Any] = dict(
            tokens=tokens, targets=np.asarray(targets, np.int32), weights=np.asarray(weights, np.float32),
            segments=segments, positions=np.asarray(positions, np.int32),
            types=None if types is None else np.asarray(types, np.int32),
        )  # fmt: skip
        for name, value in arrays.items():
            if value is not None and value.shape != tokens.shape:
                raise ValueError(f"{name} have shape {value.shape}, tokens {tokens.shape}; they must be equal")
        return cls(**arrays)


@flax.struct.dataclass
class Output:
    """What a forward pass returns. logits float32 [B, T, V] or None, hidden [B, T, D], pooled [B, D] or None."""

    logits: jax.Array | None
    hidden: jax.Array
    pooled: jax.Array | None = None
    cache: object = None
