"""Perplexity and bits per byte on packed text, with a standard error."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh

from lm.data import batches
from lm.data.packing import DataError, Packed
from lm.objectives.next_token import token_losses
from lm.training import sharding
from lm.training.sharding import ACTIVATIONS, Rules


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """loss: nats per token, every token weighing the same.   perplexity: exp(loss).   bits_per_byte: of the text's UTF-8 bytes.

    bits_per_byte_stderr: standard error over `units` independent pieces of text (documents, or windows where there is one document).
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    bits_per_byte_stderr: float
    tokens: int
    bytes: int
    units: int
    unit: str


def make_evaluator(model, mesh: Mesh, batch_size: int, *, activations: Rules = ACTIVATIONS):
    """A function (params, packed, max_rows=0) -> Perplexity that compiles once a row length. Rows are read in order; max_rows 0 = all."""
    run = jax.jit(lambda params, batch: token_losses(model, params, batch), out_shardings=sharding.replicated(mesh))

    def evaluate(params, packed: Packed, max_rows: int = 0) -> Perplexity:
        rows = sharding.batch_sharding(mesh, (batch_size, packed.length), activations)
        losses = np.zeros((len(packed), packed.length), np.float32)
        seen = np.zeros(len(packed), bool)
        with sharding.activate(mesh, activations):
            for numbers, batch in batches.in_order(packed, batch_size, rows, max_rows or None):
                real = numbers >= 0
                losses[numbers[real]] = np.asarray(run(params, batch))[real]
                seen[numbers[real]] = True
        return summarise(packed, losses, seen)

    return evaluate


def summarise(packed: Packed, losses: np.ndarray, seen: np.ndarray | None = None) -> Perplexity:
    """Perplexity from the loss of every position, float [N, T] in nats; `seen` bool [N], the rows to count (default: all).

    A document of which some rows are left out counts the share of its bytes that its predictions make up.
    """
    seen = np.ones(len(packed), bool) if seen is None else seen
    # Sums of each piece: a piece is one segment id in one row.
    segments = np.asarray(packed.segments).astype(np.int64)
    width = int(segments.max()) + 1
    key = np.arange(len(packed))[:, None] * width + segments
    total = np.bincount(key.ravel(), losses.astype(np.float64).ravel(), minlength=len(packed) * width)
    count = np.bincount(key.ravel(), minlength=len(packed) * width)
    piece = np.asarray(packed.piece_row).astype(np.int64) * width + packed.piece_segment
    nats, tokens, document = total[piece], count[piece], np.asarray(packed.piece_document)
    bytes_ = tokens * (np.asarray(packed.document_bytes) / np.bincount(document, tokens))[document]

    kept = seen[np.asarray(packed.piece_row)]
    nats, tokens, bytes_, document = nats[kept], tokens[kept], bytes_[kept], document[kept]
    unit = "document" if len(np.unique(document)) > 1 else "window"
    group = document if unit == "document" else np.arange(len(document))
    size = group.max() + 1
    nats_u, bytes_u, tokens_u = (np.bincount(group, x, minlength=size) for x in (nats, bytes_, tokens))
    nats_u, bytes_u = nats_u[tokens_u > 0], bytes_u[tokens_u > 0]

    loss, rate = nats.sum() / tokens.sum(), nats.sum() / bytes_.sum()
    # The standard error of a ratio of sums (Cochran 1977, Sampling Techniques, section 6.4).
    n = len(nats_u)
    spread = math.sqrt(n / (n - 1) * np.square(nats_u - rate * bytes_u).sum()) / bytes_.sum() if n > 1 else math.nan
    return Perplexity(
        loss=float(loss), perplexity=float(np.exp(min(loss, 700.0))), bits_per_byte=float(rate / math.log(2)),
        bits_per_byte_stderr=float(spread / math.log(2)), tokens=int(tokens.sum()), bytes=round(bytes_.sum()), units=n, unit=unit,
    )  # fmt: skip


def check_length(length: int, max_length: int) -> None:
    """Raises DataError when rows are longer than the model can read."""
    if not 1 <= length <= max_length:
        raise DataError(f"rows of {length} tokens: expected 1 to {max_length}, the longest this model can read")
