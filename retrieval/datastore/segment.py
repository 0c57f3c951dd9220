"""Segment: entries of a datastore that never change, with an index of their keys.

A folder of raw arrays, memory-mapped: keys float16 [N, K]; values, the next tokens; passages, their
places in `sources`; offsets, int32 [N] each. The index has the rows 0 to N - 1 as ids.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.datastore.projection import on_sphere, query_on_sphere
from retrieval.datastore.rows import Source
from retrieval.errors import RetrievalError
from retrieval.index.approximate import ScannIndex, default_index
from retrieval.index.exact import ExactIndex
from retrieval.index.index import Index

INDEXES: dict[str, type[Index]] = {"exact": ExactIndex, "scann": ScannIndex}
FILES = {"keys": np.float16, "values": np.int32, "passages": np.int32, "offsets": np.int32}
SOURCES, INDEX = "sources.json", "index"
AT_ONCE = 65_536  # keys that are copied or converted at one time


def index_kind(name: str) -> type[Index]:
    """Class of an index by name; "" = ScaNN where it runs. Raises RetrievalError."""
    if name and name not in INDEXES:
        raise RetrievalError(f"index={name!r}: expected {' or '.join(INDEXES)}, or '' to choose")
    return INDEXES[name] if name else default_index()


@dataclasses.dataclass(frozen=True)
class Segment:
    """name: of its folder. sizes: int64 [P], entries of every passage."""

    name: str
    keys: np.ndarray
    values: np.ndarray
    passages: np.ndarray
    offsets: np.ndarray
    sources: tuple[Source, ...]
    sizes: np.ndarray
    radius: float
    index: Index

    def __len__(self) -> int:
        return len(self.values)

    @property
    def facts(self) -> dict:
        """What the manifest holds of it."""
        return {"name": self.name, "entries": len(self), "radius": self.radius}

    @classmethod
    def load(cls, folder: Path, width: int, facts: dict, kind: type[Index]) -> "Segment":
        """Open a segment. Raises RetrievalError for a missing or truncated file."""
        count = facts["entries"]
        arrays: dict[str, Any] = {}
        try:
            for name, dtype in FILES.items():
                path, shape = folder / name, (count, width) if name == "keys" else (count,)
                expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
                if (size := path.stat().st_size) != expected:
                    raise RetrievalError(
                        f"{path} has {size:,} bytes, expected {expected:,}: build the datastore "
                        "again"
                    )
                arrays[name] = np.memmap(path, dtype, "r", shape=shape).view(np.ndarray)
            sources = tuple(Source(*row) for row in json.loads((folder / SOURCES).read_text()))
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, RetrievalError):
                raise
            raise RetrievalError(
                f"{folder} cannot be read ({error}): build the datastore again"
            ) from None
        sizes = np.bincount(arrays["passages"], minlength=len(sources))
        index = kind.load(folder / INDEX)[0]
        name = facts["name"]
        return cls(
            name, **arrays, sources=sources, sizes=sizes, radius=facts["radius"], index=index
        )

    def nearest(self, keys: np.ndarray, k: int, alive: np.ndarray | None) -> np.ndarray:
        """Rows of about the k nearest living entries of keys [Q, K], int64 [Q, >= k]; -1 = none.

        alive: bool [P], the passages that are there; None = all.
        """
        queries = query_on_sphere(keys, self.radius)
        living = len(self) if alive is None else int(self.sizes[alive].sum())
        wanted = min(k, living)
        asked = min(len(self), k + (0 if alive is None else max(k, 16)))
        while True:
            found = _rectangle(self.index.search(queries, asked)[0], asked)
            if alive is None:
                return found
            there = (found >= 0) & alive[self.passages[np.maximum(found, 0)]]
            if asked == len(self) or (there.sum(axis=1) >= wanted).all():
                return np.where(there, found, -1)
            asked = min(len(self), 4 * asked)

    def distances(self, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Squared distances of keys [Q, K] to the entries rows [Q, C], float32; inf for row -1."""
        theirs = self.keys[np.maximum(rows, 0)].astype(np.float32)
        found = np.square(theirs - keys[:, None, :]).sum(axis=-1)
        return np.where(rows >= 0, found, np.inf).astype(np.float32)


class Writer:
    """Writes a segment to a new folder: `add` entries, then `close`."""

    def __init__(self, folder: Path, width: int):
        folder.mkdir(parents=True)
        self.folder, self.width, self.count = folder, width, 0
        self.sources: list[Source] = []

    def add(self, **arrays: np.ndarray) -> None:
        """Append entries: keys float16 [N, K], values, passages and offsets [N]."""
        self.count += len(arrays["values"])
        for name, dtype in FILES.items():
            with open(self.folder / name, "ab") as file:
                file.write(np.ascontiguousarray(arrays[name], dtype).data)

    def close(self, kind: type[Index]) -> dict:
        """Build the index and flush everything to disk; return the facts of the segment.

        Memory holds float32 keys of this segment and its index.
        """
        for name in FILES:
            with open(self.folder / name, "ab") as file:
                os.fsync(file.fileno())
        keys = np.memmap(self.folder / "keys", np.float16, "r", shape=(self.count, self.width))
        squares = [np.square(part).sum(axis=1).max() for part in _parts(keys)]
        radius = 1.001 * float(np.sqrt(max([1e-6, *squares])))
        vectors = np.empty((self.count, self.width + 2), np.float32)
        for at, part in zip(range(0, self.count, AT_ONCE), _parts(keys), strict=True):
            vectors[at : at + len(part)] = on_sphere(part, radius)
        index = kind.build(vectors, np.arange(self.count))
        del vectors
        index.save(self.folder / INDEX)
        with open(self.folder / SOURCES, "w", encoding="utf-8") as file:
            json.dump([dataclasses.astuple(source) for source in self.sources], file)
            file.flush()
            os.fsync(file.fileno())
        return {"name": self.folder.name, "entries": self.count, "radius": radius}


def copied(writer: Writer, segment: Segment, alive: np.ndarray) -> None:
    """Append the living entries of a segment, and its sources. alive: bool [P]."""
    moved = np.cumsum(alive) - 1 + len(writer.sources)
    writer.sources += [one for one, kept in zip(segment.sources, alive, strict=True) if kept]
    for at in range(0, len(segment), AT_ONCE):
        part = slice(at, at + AT_ONCE)
        passages = np.asarray(segment.passages[part])
        kept = alive[passages]
        writer.add(
            keys=segment.keys[part][kept],
            values=segment.values[part][kept],
            passages=moved[passages[kept]],
            offsets=segment.offsets[part][kept],
        )


def _parts(keys: np.ndarray) -> Iterator[np.ndarray]:
    for at in range(0, len(keys), AT_ONCE):
        yield np.asarray(keys[at : at + AT_ONCE], np.float32)


def _rectangle(found: Sequence | np.ndarray, width: int) -> np.ndarray:
    """Rows of an index as int64 [Q, width]; -1 where a query got fewer."""
    if isinstance(found, np.ndarray) and found.shape[1] == width:
        return found
    rows = np.full((len(found), width), -1, np.int64)
    for at, own in enumerate(found):
        rows[at, : len(own)] = own
    return rows
