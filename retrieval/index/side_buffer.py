"""New rows that an approximate search may miss, scored exactly beside it."""

from collections.abc import Sequence

import numpy as np

from retrieval.index.index import Found, Rows
from retrieval.index.rotation import product


class Unproven:
    """Rows inserted since a searcher was trained, until it is known to find them.

    A searcher is trained for the rows it was built from; it may miss others, even when searched
    with their own vectors.
    """

    def __init__(self, dim: int, numbers: bool = False):
        self._rows, self._vectors = Rows([], numbers), np.zeros((0, dim), np.float32)
        self._looks, self._since = 0, {}

    def __len__(self):
        return len(self._rows)

    def ids(self) -> list:
        return self._rows.ids()

    def put(self, vectors: np.ndarray, ids: Sequence) -> None:
        where = [self._rows.place(id) for id in ids]
        if len(self) > len(self._vectors):
            grown = np.zeros((2 * len(self), self._vectors.shape[1]), np.float32)
            grown[: len(self._vectors)] = self._vectors
            self._vectors = grown
        self._vectors[where] = vectors
        self._since.update(dict.fromkeys(ids, self._looks))

    def drop(self, ids: Sequence) -> None:
        for id in ids:
            if self._since.pop(id, None) is not None:
                row, last = self._rows.remove(id)
                self._vectors[row] = self._vectors[last]

    def rows(self) -> tuple[np.ndarray, list]:
        """Return their vectors and ids."""
        return self._vectors[: len(self)].copy(), self.ids()

    def sample(self, count: int) -> np.ndarray:
        """Return about `count` of their vectors, evenly spaced."""
        return self._vectors[: len(self)][:: -(-len(self) // count) or 1].copy()

    def look(self) -> int:
        """Start a check of the current rows; return its number.

        `proven` of that number drops the rows not inserted since.
        """
        self._looks += 1
        return self._looks

    def proven(self, look: int) -> None:
        self.drop([id for id, since in self._since.items() if since < look])

    def beside(self, queries: np.ndarray, k: int, ids, scores) -> Found:
        """Merge the results of a search with these rows: the k best of both.

        queries [Q, dim]; ids and scores: the results.
        """
        if not self._since:
            return ids, scores
        own = product(
            queries[0] if len(queries) == 1 else queries, self._vectors[: len(self)].T
        ).reshape(len(queries), -1)
        last = np.array([found[-1] if len(found) == k else -np.inf for found in scores])
        for query in np.flatnonzero((own > last[:, None]).any(axis=1)):
            near = np.flatnonzero(own[query] > last[query])
            near = near[np.argsort(-own[query, near])[:k]]
            both = dict(zip(self._rows.at(near), own[query, near], strict=True)) | dict(
                zip(ids[query], scores[query], strict=True)
            )
            best = sorted(both, key=both.__getitem__, reverse=True)[:k]
            ids[query], scores[query] = best, np.array([both[id] for id in best], np.float32)
        return ids, scores
