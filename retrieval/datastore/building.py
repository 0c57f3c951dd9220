"""From passages or packed rows to segments on disk, as a stream."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.data.packed import Packed
from retrieval.datastore import rows
from retrieval.datastore.manifest import PROJECTION, next_folder
from retrieval.datastore.observer import Observer
from retrieval.datastore.projection import Projection
from retrieval.datastore.segment import Writer
from retrieval.errors import RetrievalError
from retrieval.index.index import Index
from retrieval.memory import Memory
from retrieval.progress import chunks_with_progress

SEGMENT = 1 << 20  # entries, about, after which another segment is begun
SAMPLE = 32_768  # entries that the projection is fitted to


@dataclasses.dataclass(frozen=True)
class Settings:
    """pca: numbers of a key, 0 = as many as the vector. index: "exact", "scann" or "" to choose.

    segment, sample: entries, see SEGMENT and SAMPLE.
    """

    pca: int = 0
    index: str = ""
    segment: int = SEGMENT
    sample: int = SAMPLE


@dataclasses.dataclass(frozen=True)
class Made:
    """What `build` or `update` did: entries and passages read, passages removed.

    split: passages longer than a row, which are read in windows.
    """

    version: int
    entries: int
    passages: int
    removed: int
    split: int


@dataclasses.dataclass
class Tally:
    removed: int = 0
    entries: int = 0
    passages: int = 0
    split: int = 0

    def made(self, version: int) -> Made:
        return Made(version, self.entries, self.passages, self.removed, self.split)


class Entries(NamedTuple):
    """vectors [N, D]; values, passages, offsets [N].

    sources: of the chunk that these and the following entries are of; () where it goes on.
    """

    sources: tuple[rows.Source, ...]
    vectors: np.ndarray
    values: np.ndarray
    passages: np.ndarray
    offsets: np.ndarray


def chunks(source: Memory | Packed, observer: Observer) -> Iterator[rows.Chunk]:
    """Chunks in a random order, so that the first entries are a fair sample."""
    rng = np.random.default_rng(0)
    if isinstance(source, Packed):
        return rows.of_packed(source, rng.permutation(len(source)))
    ids = source.ids()
    return of_memory(source, observer, [ids[at] for at in rng.permutation(len(ids))])


def of_memory(memory: Memory, observer: Observer, ids: Sequence[str]) -> Iterator[rows.Chunk]:
    """Raises RetrievalError when a passage is gone: the memory changed meanwhile."""
    for part in chunks_with_progress(ids, "reading passages", rows.PASSAGES):
        found = memory.vectors(part)[0]
        if len(found) < len(part):
            raise RetrievalError(
                f"{memory.path} was changed while the datastore was made: try again"
            )
        c = observer.model.config
        chunk = rows.of_passages(found, observer.tokenizer, c, observer.length)
        if chunk is not None:
            yield chunk


def entries(each: Iterable[rows.Chunk], observer: Observer, tally: Tally) -> Iterator[Entries]:
    """Read chunks, a batch at a time."""
    for chunk in each:
        tally.passages += len(chunk.sources)
        tally.split += chunk.split
        sources = chunk.sources
        for found in observer.observe(chunk.packed):
            at = found.rows, found.places
            tally.entries += len(found.targets)
            yield Entries(
                sources, found.vectors, found.targets, chunk.passages[at], chunk.offsets[at]
            )
            sources = ()


def write(
    path: Path,
    stream: Iterator[Entries],
    settings: Settings,
    kind: type[Index],
    projection: Projection | None = None,
) -> list[dict]:
    """Write segments to the datastore in `path`; return their facts.

    Without a projection, one is fitted to the first entries and saved. Raises RetrievalError when
    there is nothing to predict.
    """
    if projection is None:
        first, count = [], 0
        for part in stream:
            first.append(part)
            count += len(part.values)
            if count >= settings.sample:
                break
        if not count:
            raise RetrievalError("there is no text to predict: give passages with some tokens")
        sample = np.concatenate([part.vectors for part in first])
        projection = Projection.fit(sample, settings.pca)
        projection.save(path / PROJECTION)
        stream = itertools.chain(first, stream)
    made, writer, before = [], None, 0
    for part in stream:
        if part.sources:
            if writer is not None and writer.count >= settings.segment:
                made.append(writer.close(kind))
                writer = None
            writer = writer or Writer(next_folder(path), projection.width)
            before = len(writer.sources)
            writer.sources += part.sources
        assert writer is not None  # a chunk begins with its sources
        writer.add(
            keys=projection.stored(part.vectors),
            values=part.values,
            passages=part.passages + before,
            offsets=part.offsets,
        )
    return [*made, writer.close(kind)] if writer is not None else made
