"""What every index answers to, and the ids it keeps: nearest neighbours of unit vectors by cosine.

An index knows ids and vectors and nothing else; it can always be rebuilt from the store. Searching never returns an id that
was not put in, and a search never sees half of a change.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.passages import listed
from retrieval.vectors import check_ids


class Index(Protocol):
    """Unit vectors with names, safe for any number of threads. Every method raises RetrievalError on bad input, before anything changes."""

    dim: int

    def __len__(self) -> int: ...

    def __contains__(self, id: str) -> bool: ...

    def search(self, queries: np.ndarray, k: int) -> tuple[list[list[str]], list[np.ndarray]]:
        """queries [Q, dim] -> per query the ids of its min(k, size) nearest, best first, and their cosines, float32."""

    def upsert(self, vectors: np.ndarray, ids: Sequence[str]) -> None:
        """Puts vectors [N, dim] under ids, replacing those that exist."""

    def delete(self, ids: Sequence[str]) -> None:
        """Removes ids; one that is unknown is an error."""

    def save(self, directory, **facts) -> None:
        """Writes the index and a manifest with `facts` (JSON values), atomically."""

    def health(self) -> dict:
        """How the index is, as plain values: at least kind, size and recall, measured or 1.0 where every search is exact."""

    @classmethod
    def build(cls, vectors: np.ndarray, ids: Sequence[str]) -> Self: ...

    @classmethod
    def load(cls, directory) -> tuple[Self, dict]:
        """(index, manifest). A missing, changed or truncated file is an error."""


class Rows:
    """ids in row order, and the row of each id. Deleting moves the last row into the gap, as ScaNN does."""

    def __init__(self, ids: Sequence[str]):
        self.row = {id: row for row, id in enumerate(ids)}
        self._ids = np.array([*ids, None], object)  # None: room to grow, and no array of characters

    def __len__(self):
        return len(self.row)

    def ids(self) -> list[str]:
        return self._ids[: len(self)].tolist()

    def at(self, rows: np.ndarray) -> list:
        """The ids of rows [...], as nested lists."""
        return self._ids.take(rows).tolist()  # a fifth faster than [rows]

    def named(self, rows: np.ndarray, scores: np.ndarray) -> tuple[list[list[str]], list[np.ndarray]]:
        """rows and scores [Q, k] as ids and scores a query, without what is padded: a score that is not finite."""
        found = np.isfinite(scores)
        if found.all():
            return self.at(rows), list(scores)
        return [self.at(row[f]) for row, f in zip(rows, found, strict=True)], [s[f] for s, f in zip(scores, found, strict=True)]

    def check_known(self, ids: Sequence[str]) -> list[str]:
        ids = check_ids(ids)
        unknown = [id for id in ids if id not in self.row]
        if unknown:
            raise RetrievalError(f"not in the index: {listed(unknown)}: nothing was changed")
        return ids

    def place(self, id: str) -> int:
        """The row of id, a new one at the end if it has none."""
        row = self.row.setdefault(id, len(self.row))
        if row >= len(self._ids):
            self._ids = np.concatenate([self._ids, np.full(len(self._ids) + 1000, None)])
        self._ids[row] = id
        return row

    def remove(self, id: str) -> tuple[int, int]:
        """(the row that is freed, the last row, which now lives there)."""
        row, last = self.row.pop(id), len(self.row)
        moved, self._ids[last] = self._ids[last], None
        if row != last:
            self._ids[row], self.row[moved] = moved, row
        return row, last
