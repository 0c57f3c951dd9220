"""What every index answers to, and the ids it keeps: nearest neighbours of unit vectors by cosine.

An index knows ids and vectors and nothing else; it can always be rebuilt from the store. Searching never returns an id that
was not put in, and a search never sees half of a change. Ids are texts, as a memory's are, or whole numbers, as places in an array are:
these are answered as an array, in a fraction of the time.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.passages import listed
from retrieval.vectors import Ids, check_ids, whole

Found = (
    tuple[list[list[str]], list[np.ndarray]] | tuple[np.ndarray, np.ndarray]
)  # ids and scores of each query


class Index(Protocol):
    """Unit vectors with names, safe for any number of threads. Every method raises RetrievalError on bad input, before anything changes."""

    dim: int
    numbers: bool  # whether ids are whole numbers

    def __len__(self) -> int: ...

    def __contains__(self, id: str | int) -> bool: ...

    def search(self, queries: np.ndarray, k: int) -> Found:
        """queries [Q, dim] -> per query the ids of its min(k, size) nearest, best first, and their cosines, float32: two lists, or two
        arrays [Q, min(k, size)] where ids are whole numbers (int64)."""

    def upsert(self, vectors: np.ndarray, ids: Ids) -> None:
        """Puts vectors [N, dim] under ids, replacing those that exist."""

    def delete(self, ids: Ids) -> None:
        """Removes ids; one that is unknown is an error."""

    def save(self, directory, **facts) -> None:
        """Writes the index and a manifest with `facts` (JSON values), atomically."""

    def health(self) -> dict:
        """How the index is, as plain values: at least kind, size and recall, measured or 1.0 where every search is exact."""

    @classmethod
    def build(cls, vectors: np.ndarray, ids: Ids) -> Self:
        """The index of vectors [N, dim]. Ids are whole numbers if they are given as an array of these, and always will be."""
        ...

    @classmethod
    def load(cls, directory) -> tuple[Self, dict]:
        """(index, manifest). A missing, changed or truncated file is an error."""


class Rows:
    """ids in row order, and the row of each id. Deleting moves the last row into the gap, as ScaNN does."""

    def __init__(self, ids: Sequence, numbers: bool = False):
        self.numbers, self._none = numbers, 0 if numbers else None  # in rows that are free
        self.row = {id: row for row, id in enumerate(ids)}
        self._ids = np.array([*ids, self._none], np.int64 if numbers else object)

    @classmethod
    def of(cls, ids: Ids, count: int) -> "Rows":
        """Of `count` different texts, or an array of numbers. Raises RetrievalError for others."""
        return cls(check_ids(ids, count, whole(ids)), whole(ids))

    def __len__(self):
        return len(self.row)

    def ids(self) -> list:
        return self._ids[: len(self)].tolist()

    def at(self, rows: np.ndarray) -> list:
        """The ids of rows [...], as nested lists."""
        return self._ids.take(rows).tolist()  # a fifth faster than [rows]

    def answer(self, rows: np.ndarray, scores: np.ndarray) -> Found:
        """rows and scores [Q, k] as an index answers."""
        return (self._ids.take(rows), scores) if self.numbers else (self.at(rows), list(scores))

    def answer_one(self, rows: np.ndarray, scores: np.ndarray) -> Found:
        """rows and scores [k] of one query, sooner."""
        return (
            (self._ids.take(rows[None]), scores[None])
            if self.numbers
            else ([self.at(rows)], [scores])
        )

    def named(self, rows: np.ndarray, scores: np.ndarray) -> Found:
        """The answer without what is padded: a score that is not finite."""
        found = np.isfinite(scores)
        if found.all():
            return self.answer(rows, scores)
        return [self.at(row[f]) for row, f in zip(rows, found, strict=True)], [
            s[f] for s, f in zip(scores, found, strict=True)
        ]

    def check(self, ids: Ids, count: int | None = None) -> list:
        """The ids as a list, which are to be of the kind that the rows have."""
        return check_ids(ids, count, self.numbers)

    def check_known(self, ids: Ids) -> list:
        ids = self.check(ids)
        unknown = [id for id in ids if id not in self.row]
        if unknown:
            raise RetrievalError(f"not in the index: {listed(unknown)}: nothing was changed")
        return ids

    def place(self, id: str | int) -> int:
        """The row of id, a new one at the end if it has none."""
        row = self.row.setdefault(id, len(self.row))
        if row >= len(self._ids):
            self._ids = np.concatenate(
                [self._ids, np.full(len(self._ids) + 1000, self._none, self._ids.dtype)]
            )
        self._ids[row] = id
        return row

    def remove(self, id: str | int) -> tuple[int, int]:
        """(the row that is freed, the last row, which now lives there)."""
        row, last = self.row.pop(id), len(self.row)
        moved, self._ids[last] = self._ids.item(last), self._none
        if row != last:
            self._ids[row], self.row[moved] = moved, row
        return row, last
