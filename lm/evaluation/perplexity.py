"""Perplexity and bits per byte on packed text, with a standard error."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh

from lm.data import batches
from lm.data.packed import Packed
from lm.data.read.sources import DataError
from lm.distributed import sharding
from lm.distributed.sharding import ACTIVATIONS, Rules
from lm.losses.tokens import token_losses
from lm.weights.loading import run_config


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text.

    * loss: nats per token, with equal weights.
    * perplexity: exp(loss).
    * bits_per_byte: per byte of the text in UTF-8.
    * bits_per_byte_stderr: its standard error over `units` independent pieces of text: documents,
      or windows if there is one document.

    If a task predicts only some of the tokens, or others than the text's, loss is over those,
    `tokens` is their number, and bits per byte are nan.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    bits_per_byte_stderr: float
    tokens: int
    bytes: int
    units: int
    unit: str


def make_evaluator(
    model, mesh: Mesh, batch_size: int, *, activations: Rules = ACTIVATIONS, transform=None
):
    """Build a function (params, packed, max_rows=0) -> Perplexity.

    It compiles once per row length. Rows are read in order; max_rows 0 = all. transform: of a
    task (lm/tasks/task.py); its result for a row depends only on the row's number.
    """

    def losses_of(params, batch):
        return token_losses(model, params, batch) * batch.weights, batch.weights, batch.segments

    run = jax.jit(losses_of, out_shardings=sharding.replicated(mesh))

    def evaluate(params, packed: Packed, max_rows: int = 0) -> Perplexity:
        rows = sharding.batch_sharding(mesh, (batch_size, packed.length), activations)
        lengths = batches.lengths_of(packed, transform)
        losses, weights = np.zeros((2, len(packed), lengths[0]), np.float32)
        segments = np.zeros((len(packed), lengths[0]), np.int32)
        seen = np.zeros(len(packed), bool)
        with sharding.activate(mesh, activations):
            for numbers, batch in batches.in_order(
                packed, batch_size, rows, max_rows or None, transform, lengths, model.config
            ):
                real = numbers >= 0
                for array, found in zip(
                    (losses, weights, segments), run(params, batch), strict=True
                ):
                    array[numbers[real]] = np.asarray(found)[real]
                seen[numbers[real]] = True
        whole = transform is None and "weights" not in packed.extra
        return (
            summarise(packed, losses, seen)
            if whole
            else summarise(packed, losses, seen, weights, segments)
        )

    return evaluate


def summarise(
    packed: Packed,
    losses: np.ndarray,
    seen: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    segments: np.ndarray | None = None,
) -> Perplexity:
    """Compute Perplexity from the loss of every position, float [N, T] in nats.

    seen: bool [N], the rows to count (default: all). If some rows of a document are left out, its
    bytes count in proportion to its predictions. weights, segments: [N, T], of rows that a
    task made from the packed ones; their losses are already weighted.
    """
    seen = np.ones(len(packed), bool) if seen is None else seen
    if weights is not None and segments is not None:
        return _of_task(losses, weights, segments, seen)
    # Sums per piece: a piece is one segment id in one row.
    segments = np.asarray(packed.segments).astype(np.int64)
    width = int(segments.max()) + 1
    key = np.arange(len(packed))[:, None] * width + segments
    total = np.bincount(
        key.ravel(), losses.astype(np.float64).ravel(), minlength=len(packed) * width
    )
    count = np.bincount(key.ravel(), minlength=len(packed) * width)
    piece = np.asarray(packed.piece_row).astype(np.int64) * width + packed.piece_segment
    nats, tokens, document = total[piece], count[piece], np.asarray(packed.piece_document)
    bytes_ = tokens * (np.asarray(packed.document_bytes) / np.bincount(document, tokens))[document]

    kept = seen[np.asarray(packed.piece_row)]
    nats, tokens, bytes_, document = nats[kept], tokens[kept], bytes_[kept], document[kept]
    unit = "document" if len(np.unique(document)) > 1 else "window"
    group = document if unit == "document" else np.arange(len(document))
    size = group.max() + 1
    nats_u, bytes_u, tokens_u = (
        np.bincount(group, x, minlength=size) for x in (nats, bytes_, tokens)
    )
    nats_u, bytes_u = nats_u[tokens_u > 0], bytes_u[tokens_u > 0]

    loss, rate = nats.sum() / tokens.sum(), nats.sum() / bytes_.sum()
    # Standard error of a ratio of sums (Cochran 1977, Sampling Techniques, section 6.4).
    n = len(nats_u)
    spread = (
        math.sqrt(n / (n - 1) * np.square(nats_u - rate * bytes_u).sum()) / bytes_.sum()
        if n > 1
        else math.nan
    )
    return Perplexity(
        loss=float(loss),
        perplexity=float(np.exp(min(loss, 700.0))),
        bits_per_byte=float(rate / math.log(2)),
        bits_per_byte_stderr=float(spread / math.log(2)),
        tokens=int(tokens.sum()),
        bytes=round(bytes_.sum()),
        units=n,
        unit=unit,
    )


def _of_task(
    losses: np.ndarray, weights: np.ndarray, segments: np.ndarray, seen: np.ndarray
) -> Perplexity:
    asked = weights[seen].sum(dtype=np.float64)
    loss = float(losses[seen].sum(dtype=np.float64) / asked) if asked else math.nan
    units = sum(len(np.unique(row[row > 0])) for row in segments[seen])
    return Perplexity(
        loss, float(np.exp(min(loss, 700.0))), math.nan, math.nan, round(asked), 0, units, "window"
    )


def row_length(path: str, max_length: int) -> int:
    """Default tokens per row: a run's own, which reproduces its figures, else at most 1,024."""
    return run_config(path).get("length") or min(max_length, 1024)


def check_length(length: int, max_length: int, longest: int | None = None) -> None:
    """Raise DataError when rows are longer than the model can read.

    longest: longest document that a task makes of a row, if it differs from `length`.
    """
    if not 1 <= (length if longest is None else longest) <= max_length:
        raise DataError(
            f"rows of {length} tokens: expected 1 to {max_length}, the longest this model can read"
        )
