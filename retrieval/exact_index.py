"""ExactIndex: exact search on the accelerator."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from retrieval.errors import RetrievalError
from retrieval.index import Rows
from retrieval.locks import ReadersWriter
from retrieval.vectors import check_ids, check_k, read_manifest, save_index, unit_rows


class ExactIndex:
    """Every query against every vector, on the default JAX device: a matrix product and a top-k.

    Arrays are padded to powers of two, so that a growing memory compiles a handful of times. On a TPU the top-k is
    `approx_max_k` (Chern et al. 2022) at recall 0.99, elsewhere exact.
    """

    def __init__(self, vectors: np.ndarray, rows: Rows):
        self.dim, self._rows = vectors.shape[1], rows
        self._vectors = _padded(vectors, _power_of_two(len(vectors)))
        self._on_device: jax.Array | None = None
        self._lock = ReadersWriter()

    @classmethod
    def build(cls, vectors, ids: Sequence[str]) -> "ExactIndex":
        vectors = unit_rows(vectors, None)
        return cls(vectors, Rows(check_ids(ids, len(vectors))))

    def __len__(self):
        return len(self._rows)

    def __contains__(self, id: str) -> bool:
        return id in self._rows.row

    def search(self, queries, k: int):
        k, queries = check_k(k), unit_rows(queries, self.dim, "queries")
        with self._lock.read():
            size, count = len(self._rows), len(queries)
            if size == 0 or count == 0:
                return [[] for _ in queries], [np.zeros(0, np.float32) for _ in queries]
            k = min(k, size)
            vectors = self._on_device
            if vectors is None:
                vectors = self._on_device = jnp.array(self._vectors, copy=True)
            padded_k = min(_power_of_two(k, 16), len(self._vectors))
            scores, rows = _top_k(vectors, _padded(queries, _power_of_two(count, 1)), size, k=padded_k)
            scores, rows = np.asarray(scores)[:count, :k], np.asarray(rows)[:count, :k]
            return self._rows.named(rows, scores)

    def upsert(self, vectors, ids: Sequence[str]) -> None:
        vectors = unit_rows(vectors, self.dim)
        ids = check_ids(ids, len(vectors))
        with self._lock.write():
            where = [self._rows.place(id) for id in ids]
            if len(self._rows) > len(self._vectors):
                self._vectors = _padded(self._vectors, _power_of_two(len(self._rows)))
            self._vectors[where] = vectors
            self._on_device = None

    def delete(self, ids: Sequence[str]) -> None:
        with self._lock.write():
            for id in self._rows.check_known(ids):
                row, last = self._rows.remove(id)
                self._vectors[row] = self._vectors[last]
            self._on_device = None

    def save(self, directory, **facts) -> None:
        with self._lock.read():
            vectors = self._vectors[: len(self._rows)]
            write = lambda folder: np.save(folder / "vectors.npy", vectors, allow_pickle=False)
            save_index(directory, write, self._rows.ids(), kind="exact", dim=self.dim, **facts)

    def health(self) -> dict:
        """kind, size and recall, which is 1.0."""
        return {"kind": "exact", "size": len(self), "recall": 1.0}

    @classmethod
    def load(cls, directory) -> tuple["ExactIndex", dict]:
        folder, manifest, ids = read_manifest(directory, "exact")
        try:
            vectors = np.load(folder / "vectors.npy", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise RetrievalError(f"{folder} cannot be loaded ({error}): build the index again") from None
        return cls(unit_rows(vectors, manifest["dim"]), Rows(check_ids(ids, len(vectors)))), manifest


def _top_k(vectors, queries, size: int, k: int):
    search = jax.lax.approx_max_k if jax.default_backend() == "tpu" else jax.lax.top_k
    return _jitted_top_k(vectors, queries, size, k=k, search=search)


def _scores_top_k(vectors_ND, queries_QD, size, *, k, search):
    scores_QN = jnp.einsum("qd,nd->qn", queries_QD, vectors_ND, precision=jax.lax.Precision.HIGHEST)
    scores_QN = jnp.where(jnp.arange(len(vectors_ND)) < size, scores_QN, -jnp.inf)
    options = {"recall_target": 0.99} if search is jax.lax.approx_max_k else {}
    return search(scores_QN, k, **options)


_jitted_top_k = jax.jit(_scores_top_k, static_argnames=("k", "search"))


def _power_of_two(size: int, least: int = 1024) -> int:
    return max(least, 1 << max(0, size - 1).bit_length())


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((length - len(rows), rows.shape[1]), np.float32)])
