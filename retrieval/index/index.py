"""Index: the interface of every vector index (nearest neighbours by cosine), and its ids.

An index holds ids and unit vectors only and can always be rebuilt from the store. A search never
returns an id that was not inserted and never sees half of a change. Ids are strings, as in a
memory, or integers, as positions in an array; integer ids are returned as an array, which is much
faster.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.index.vectors import Ids, check_ids, whole
from retrieval.passages import listed

# Ids and scores of each query.
Found = tuple[list[list[str]], list[np.ndarray]] | tuple[np.ndarray, np.ndarray]


class Index(Protocol):
    """Unit vectors by id, safe for any number of threads.

    Every method raises RetrievalError on bad input, before anything changes.
    """

    dim: int
    numbers: bool  # whether ids are integers

    def __len__(self) -> int: ...

    def __contains__(self, id: str | int) -> bool: ...

    def search(self, queries: np.ndarray, k: int) -> Found:
        """Return the ids of the min(k, size) nearest vectors of each query, and their cosines.

        queries [Q, dim]; best first; cosines are float32. Two lists, one entry per query; or two
        arrays [Q, min(k, size)] where ids are integers (int64).
        """

    def upsert(self, vectors: np.ndarray, ids: Ids) -> None:
        """Insert vectors [N, dim] under ids, replacing those that exist."""

    def delete(self, ids: Ids) -> None:
        """Delete ids; an unknown one is an error."""

    def save(self, directory, **facts) -> None:
        """Write the index and a manifest with `facts` (JSON values), atomically."""

    def health(self) -> dict:
        """Return plain values: at least kind, size and recall (measured, or 1.0 if exact)."""

    @classmethod
    def build(cls, vectors: np.ndarray, ids: Ids) -> Self:
        """Build an index of vectors [N, dim].

        Ids given as an integer array stay integers for the life of the index.
        """
        ...

    @classmethod
    def load(cls, directory) -> tuple[Self, dict]:
        """Return (index, manifest). A missing, changed or truncated file is an error."""


class Rows:
    """The id of each row and the row of each id.

    Deleting moves the last row into the gap, as ScaNN does.
    """

    def __init__(self, ids: Sequence, numbers: bool = False):
        self.numbers, self._none = numbers, 0 if numbers else None  # _none fills free rows
        self.row = {id: row for row, id in enumerate(ids)}
        self._ids = np.array([*ids, self._none], np.int64 if numbers else object)

    @classmethod
    def of(cls, ids: Ids, count: int) -> "Rows":
        """Make rows for `count` distinct strings or an integer array.

        Raises RetrievalError for other ids.
        """
        return cls(check_ids(ids, count, whole(ids)), whole(ids))

    def __len__(self):
        return len(self.row)

    def ids(self) -> list:
        return self._ids[: len(self)].tolist()

    def at(self, rows: np.ndarray) -> list:
        """Return the ids of rows [...], as nested lists."""
        return self._ids.take(rows).tolist()  # a fifth faster than [rows]

    def answer(self, rows: np.ndarray, scores: np.ndarray) -> Found:
        """Return rows and scores [Q, k] in the form of `Index.search`."""
        return (self._ids.take(rows), scores) if self.numbers else (self.at(rows), list(scores))

    def answer_one(self, rows: np.ndarray, scores: np.ndarray) -> Found:
        """Return rows and scores [k] of one query in the form of `Index.search`, faster."""
        return (
            (self._ids.take(rows[None]), scores[None])
            if self.numbers
            else ([self.at(rows)], [scores])
        )

    def named(self, rows: np.ndarray, scores: np.ndarray) -> Found:
        """Like `answer`, without padding, which has a score that is not finite."""
        found = np.isfinite(scores)
        if found.all():
            return self.answer(rows, scores)
        return [self.at(row[f]) for row, f in zip(rows, found, strict=True)], [
            s[f] for s, f in zip(scores, found, strict=True)
        ]

    def check(self, ids: Ids, count: int | None = None) -> list:
        """Return the ids as a list. Raises RetrievalError unless they are of the rows' kind."""
        return check_ids(ids, count, self.numbers)

    def check_known(self, ids: Ids) -> list:
        ids = self.check(ids)
        unknown = [id for id in ids if id not in self.row]
        if unknown:
            raise RetrievalError(f"not in the index: {listed(unknown)}: nothing was changed")
        return ids

    def place(self, id: str | int) -> int:
        """Return the row of an id; an unknown id gets a new row at the end."""
        row = self.row.setdefault(id, len(self.row))
        if row >= len(self._ids):
            self._ids = np.concatenate(
                [self._ids, np.full(len(self._ids) + 1000, self._none, self._ids.dtype)]
            )
        self._ids[row] = id
        return row

    def remove(self, id: str | int) -> tuple[int, int]:
        """Remove an id; return (freed row, last row, whose id moved into the freed one)."""
        row, last = self.row.pop(id), len(self.row)
        moved, self._ids[last] = self._ids.item(last), self._none
        if row != last:
            self._ids[row], self.row[moved] = moved, row
        return row, last
