"""Rows of tokens to read, with the passage and the offset of every predicted token.

A decoder reads a passage from its start token and predicts every token of it, the end of text
included, as in training (lm/data/encode/plain_text.py). Longer passages become consecutive windows.

The decoder of an encoder-decoder writes the text of a passage, and its encoder reads the title, or
only the end token where there is none: a passage has no source.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lm.data import packing
from lm.data.encode import plain_text
from lm.data.encode.encoding import prompt_ids
from lm.data.packed import Packed
from lm.data.read import sources
from lm.generation.requests import bucket
from lm.models import ModelConfig, inputs
from retrieval.errors import RetrievalError
from retrieval.passages import Passage

PASSAGES, ROWS = 512, 256  # that are read at one time


@dataclasses.dataclass(frozen=True)
class Source:
    """A passage of the store: its id, the hash of its content, and who may read it."""

    id: str
    content: str = ""
    access: str = ""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Rows of some passages.

    passages, offsets: int32 [N, T], for every prediction the place in `sources` of its passage,
    and its own in the tokens of the passage. split: passages longer than a row.
    """

    packed: Packed
    sources: tuple[Source, ...]
    passages: np.ndarray
    offsets: np.ndarray
    split: int = 0


def of_passages(
    passages: Mapping[str, Passage] | Sequence[Passage], tokenizer, c: ModelConfig, length: int = 0
) -> Chunk | None:
    """Pack passages into rows of at most `length` tokens; 0 = as many as the model reads.

    None where no passage has a token to predict. Raises RetrievalError for a title that is longer
    than the encoder reads.
    """
    each = [*passages.values()] if isinstance(passages, Mapping) else [*passages]
    length = checked_length(c, length)
    whole = bool(c.encoder_layers) or not c.causal
    texts = [p.text if c.encoder_layers else p.searchable for p in each]
    encoded = [ids for ids, _ in plain_text.encode(texts, tokenizer, whole)]
    titles = [_encoder_tokens(tokenizer, c, passage) for passage in each]
    if c.encoder_layers:
        start = _decoder_start(c)
        encoded = [np.concatenate([[start], ids[1:]]).astype(np.int32) for ids in encoded]
    windows = [
        (number, at, min(length, len(ids) - 1 - at))
        for number, ids in enumerate(encoded)
        for at in range(0, len(ids) - 1, length)
    ]
    if not windows:
        return None
    inputs.check_ids(c, map(np.ndarray.tolist, encoded), tokenizer, "passage", RetrievalError)
    sizes = np.array([(size, len(titles[number])) for number, _, size in windows])
    most = sizes.max(axis=0).tolist()
    reads = min(c.max_length, bucket(most[1])) if c.encoder_layers else 0
    capacity = min(length, bucket(most[0])), reads
    row_of = packing.rows_of(sizes, capacity)

    def pieces() -> Iterator[packing.Piece]:
        for number, at, size in windows:
            ids = encoded[number][at : at + size + 1]
            piece = {"tokens": ids[:-1], "targets": ids[1:]}
            yield piece | ({"encoder_tokens": titles[number]} if c.encoder_layers else {})

    fields = ("tokens", "targets", *(("encoder_tokens",) if c.encoder_layers else ()))
    packed = packing.pack(
        pieces(),
        sizes,
        row_of,
        capacity,
        dict.fromkeys(fields, np.int32),
        [number for number, *_ in windows],
        [len(text.encode()) for text in texts],
    )
    starts = np.array([at for _, at, _ in windows])
    read = tuple(Source(p.id, p.content_hash, p.access) for p in each)
    split = len({number for number, at, _ in windows if at})
    return Chunk(packed, read, *_places(packed, starts, np.arange(len(packed))), split)


def of_packed(packed: Packed, order: np.ndarray, name: str = "document") -> Iterator[Chunk]:
    """Chunks of packed rows, in an order of the rows int [N]; documents are named by number."""
    sizes = np.zeros(len(packed.piece_row), np.int64)
    for piece, (row, segment) in enumerate(
        zip(packed.piece_row, packed.piece_segment, strict=True)
    ):
        sizes[piece] = np.count_nonzero(packed.segments[row] == segment)
    documents = np.asarray(packed.piece_document)
    starts = np.zeros_like(sizes)
    so_far: dict[int, int] = {}
    for piece, document in enumerate(documents.tolist()):
        starts[piece] = so_far.get(document, 0)
        so_far[document] = int(starts[piece] + sizes[piece])
    for first in range(0, len(order), ROWS):
        rows = np.sort(order[first : first + ROWS])
        passages, offsets = _places(packed, starts, rows)
        real = np.asarray(packed.segments[rows]) > 0
        there, local = np.unique(passages[real], return_inverse=True)
        passages[real] = local
        part = dataclasses.replace(
            packed,
            tokens=packed.tokens[rows],
            targets=packed.targets[rows],
            segments=packed.segments[rows],
            extra={name: value[rows] for name, value in packed.extra.items()},
        )
        yield Chunk(part, tuple(Source(f"{name}-{n:06d}") for n in there), passages, offsets)


def of_files(patterns: str, tokenizer, c: ModelConfig, length: int = 0) -> Packed:
    """Pack the documents of text files. Raises DataError, a ValueError, where there are none."""
    length = checked_length(c, length)
    if c.causal and not c.encoder_layers:
        with tempfile.TemporaryDirectory() as cache:
            return plain_text.pack_files(patterns, tokenizer, length, cache)
    texts = sources.documents(sources.find_files(patterns))
    chunk = of_passages(
        [Passage(str(i), text) for i, text in enumerate(texts)], tokenizer, c, length
    )
    if chunk is None:
        raise RetrievalError(f"{patterns}: no document with any text in it")
    return chunk.packed


def checked_length(c: ModelConfig, length: int) -> int:
    if not 0 <= length <= c.max_length:
        raise RetrievalError(
            f"length={length}: expected 1 to {c.max_length}, the longest this model can read, or 0 "
            "for that"
        )
    return length or c.max_length


def _places(packed: Packed, starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Passage and offset of every prediction in `rows`, int32 [len(rows), T] each."""
    segments = np.asarray(packed.segments[rows])
    passages, offsets = np.zeros((2, *segments.shape), np.int32)
    at = {int(row): place for place, row in enumerate(rows)}
    for piece in np.flatnonzero(np.isin(packed.piece_row, rows)):
        place = at[int(packed.piece_row[piece])]
        inside = segments[place] == packed.piece_segment[piece]
        passages[place, inside] = packed.piece_document[piece]
        offsets[place, inside] = starts[piece] + np.arange(np.count_nonzero(inside))
    return passages, offsets


def _encoder_tokens(tokenizer, c: ModelConfig, passage: Passage) -> list[int]:
    if not c.encoder_layers:
        return []
    tokens = prompt_ids(tokenizer, passage.title, encoder=True) if passage.title else []
    tokens = tokens or [tokenizer.eos_token_id]
    if len(tokens) > c.max_length:
        raise RetrievalError(
            f"passage {passage.id!r}: its title has {len(tokens)} tokens; the encoder reads "
            f"{c.max_length}: shorten it"
        )
    return tokens


def _decoder_start(c: ModelConfig) -> int:
    if c.decoder_start_token_id is None:
        raise RetrievalError(
            f"this {c.family} model names no decoder_start_token_id, after which its decoder "
            "would begin"
        )
    return c.decoder_start_token_id
