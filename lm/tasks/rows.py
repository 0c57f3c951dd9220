"""Rows of an encoder-decoder: each document of a packed row, corrupted and reconstructed."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from lm.data.packed import Packed
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.task import Fields, Row

MULTIPLE = 8  # row lengths are rounded up to a multiple of this
ROWS_AT_ONCE = 4096

# ids -> (encoder input, decoder output)
Corrupt = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def documents(row: Row) -> Iterator[tuple[int, slice]]:
    """Yield (segment number, slice) for each document of a row, or window of one."""
    segments = np.asarray(row["segments"])
    edges = np.flatnonzero(np.diff(segments, prepend=0, append=0))
    for start, end in itertools.pairwise(edges.tolist()):
        if segments[start]:
            yield int(segments[start]), slice(start, end)


def sides(
    row: Row,
    corrupt: Corrupt,
    decoder_start: int,
    rng: np.random.Generator,
    lengths: tuple[int, int],
) -> Fields:
    """Build the encoder and decoder fields of a row, document by document.

    `corrupt` gives each document's encoder input and decoder output; the decoder's input is its
    output, shifted after `decoder_start`. Raises ValueError when the row does not fit in `lengths`.
    """
    decoder, encoder = lengths
    fields = {name: np.zeros(decoder, np.int32) for name in ("tokens", "targets", "segments")}
    fields |= {name: np.zeros(encoder, np.int32) for name in ("encoder_tokens", "encoder_segments")}
    written = read = 0
    for segment, at in documents(row):
        given, wanted = corrupt(np.asarray(row["targets"][at], np.int32), rng)
        out, into = slice(written, written + len(wanted)), slice(read, read + len(given))
        if out.stop > decoder or into.stop > encoder:
            raise ValueError(
                f"a corrupted row has more than {encoder} tokens to read or {decoder} to write"
            )
        fields["tokens"][out] = (
            np.concatenate([[decoder_start], wanted[:-1]]) if len(wanted) else wanted
        )
        fields["targets"][out], fields["segments"][out] = wanted, segment
        fields["encoder_tokens"][into], fields["encoder_segments"][into] = given, segment
        written, read = out.stop, into.stop
    return fields | {"weights": (fields["segments"] > 0).astype(np.float32)}


def text_of(ids: np.ndarray, first: int | None, last: int | None) -> slice:
    """Slice of a document's text, without the tokens that begin and end it, if present."""
    start = int(ids[0] == first)
    return slice(start, len(ids) - int(ids[-1] == last and len(ids) > start))


def widest(packed: Packed, needed: Callable[[np.ndarray], np.ndarray]) -> int:
    """Length that every row fits in, rounded up to MULTIPLE.

    needed: sizes of documents -> the tokens that they take, int [...] -> int [...].
    """
    most = 1
    for start in range(0, len(packed), ROWS_AT_ONCE):
        segments = np.asarray(packed.segments[start : start + ROWS_AT_ONCE]).astype(np.int64)
        width = int(segments.max()) + 1
        key = np.arange(len(segments))[:, None] * width + segments
        sizes = np.bincount(key.ravel(), minlength=len(segments) * width).reshape(-1, width)[:, 1:]
        most = max(most, int(np.where(sizes > 0, needed(sizes), 0).sum(axis=1).max(initial=0)))
    return -(-most // MULTIPLE) * MULTIPLE


def decoder_start(name: str, config: ModelConfig) -> int:
    """Token that the decoder starts from; ConfigError, naming the task, if there is none."""
    if config.decoder_start_token_id is None:
        raise ConfigError(
            f"task {name!r}: model.decoder_start_token_id is not set, "
            "and the decoder must start from some token"
        )
    return config.decoder_start_token_id
