"""Snapshot: one version of a datastore, which a generation searches from its first token on."""

import dataclasses
from typing import NamedTuple

import numpy as np

from retrieval.datastore.projection import Projection
from retrieval.datastore.segment import Segment
from retrieval.errors import RetrievalError
from retrieval.index.vectors import check_k

MARGIN = 8  # candidates more than k: an index may order near ties otherwise
BITS = 40  # of an entry that are its row; the others are the number of its segment
BYTES = 1 << 26  # of candidates' keys at one time


class Neighbours(NamedTuple):
    """The k nearest entries of Q vectors, nearest first.

    distances: squared, float32 [Q, k]. values: their tokens, int32 [Q, k]. entries: int64 [Q, k],
    see `Snapshot.sources`.
    """

    distances: np.ndarray
    values: np.ndarray
    entries: np.ndarray


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Segments, and which of their passages are there (bool [P], or None for all).

    version: of the datastore. memory: the version of the memory whose deletions are applied.
    """

    version: int
    memory: int | None
    projection: Projection
    parts: tuple[tuple[Segment, np.ndarray | None], ...]

    def __len__(self) -> int:
        return sum(
            len(part) if alive is None else int(part.sizes[alive].sum())
            for part, alive in self.parts
        )

    def check(self, k: int) -> int:
        """Raise RetrievalError unless k is a number of entries that are there."""
        if check_k(k) > len(self):
            raise RetrievalError(
                f"k={k}: the datastore holds {len(self):,} entries in version {self.version}; ask "
                "for at most as many, or add passages"
            )
        return int(k)

    def search(self, vectors: np.ndarray, k: int) -> Neighbours:
        """Find the k nearest entries of context vectors [Q, D], by their exact distances.

        An approximate index may miss some. Raises RetrievalError for k beyond the entries.
        """
        k = self.check(k)
        keys = self.projection(vectors)
        step = max(1, BYTES // (4 * (k + MARGIN) * self.projection.width))
        found = [self._search(keys[at : at + step], k) for at in range(0, len(keys), step)]
        if not found:
            nothing = np.zeros((0, k))
            return Neighbours(
                nothing.astype(np.float32), nothing.astype(np.int32), nothing.astype(np.int64)
            )
        return Neighbours(*(np.concatenate(each) for each in zip(*found, strict=True)))

    def _search(self, keys: np.ndarray, k: int) -> Neighbours:
        distances, values, entries = [], [], []
        for number, (part, alive) in enumerate(self.parts):
            rows = part.nearest(keys, min(k + MARGIN, len(part)), alive)
            distances.append(part.distances(keys, rows))
            values.append(part.values[np.maximum(rows, 0)])
            entries.append(np.maximum(rows, 0) | (number << BITS))
        near = np.concatenate(distances, axis=1)
        best = np.argsort(near, axis=1, kind="stable")[:, :k]
        pick = lambda each: np.take_along_axis(np.concatenate(each, axis=1), best, axis=1)
        return Neighbours(np.take_along_axis(near, best, axis=1), pick(values), pick(entries))

    def sources(self, entries: np.ndarray) -> list[tuple[str, int]]:
        """The id of the passage of each entry [N], and its offset there in tokens."""
        found: list[tuple[str, int]] = [("", 0)] * len(entries)
        numbers, rows = entries >> BITS, entries & ((1 << BITS) - 1)
        for number in np.unique(numbers):
            part = self.parts[number][0]
            at = np.flatnonzero(numbers == number)
            places = part.passages[rows[at]].tolist(), part.offsets[rows[at]].tolist()
            for one, passage, offset in zip(at, *places, strict=True):
                found[one] = part.sources[passage].id, offset
        return found
