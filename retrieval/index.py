"""Nearest neighbours of unit vectors by cosine: `ScannIndex` on the host, `ExactIndex` on the accelerator, one interface.

An index knows ids and vectors and nothing else; it can always be rebuilt from the store. Searching never returns an id that
was not put in, and a search never sees half of a change.
"""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from retrieval.errors import RetrievalError
from retrieval.locks import ReadersWriter
from retrieval.passages import listed
from retrieval.vectors import check_ids, check_k, read_manifest, save_index, unit_rows

BRUTE_FORCE_BELOW = 20_000  # rows (ScaNN docs/algorithms.md); above: quantised scores, the best of them scored again exactly
PARTITIONS_FROM = 100_000  # rows; above: sqrt(n) partitions, of which a quarter, at least 40, is searched
REORDER = 200  # candidates scored exactly
RETRAIN_AFTER = 0.5  # of the rows changed since the quantiser was trained: drift costs recall
AS_CONFIGURED = -1  # what ScaNN takes for "as configured"


class Index(Protocol):
    """Unit vectors with names. Every method raises RetrievalError on bad input, before anything changes."""

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

    @classmethod
    def build(cls, vectors: np.ndarray, ids: Sequence[str]) -> Self: ...

    @classmethod
    def load(cls, directory) -> tuple[Self, dict]:
        """(index, manifest). A missing, changed or truncated file is an error."""


def default_index() -> type[Index]:
    """ScannIndex where ScaNN runs (Linux), else ExactIndex."""
    try:
        _scann()
    except RetrievalError:
        return ExactIndex
    return ScannIndex


def _scann():
    try:
        return importlib.import_module("scann.scann_ops.py.scann_ops_pybind")
    except ImportError as error:
        raise RetrievalError(
            f"ScaNN is not available ({error}): its wheels exist for Linux on x86-64 with AVX and on ARM; "
            "install scann there, or use retrieval.ExactIndex, which searches exactly on any machine"
        ) from None


class _Rows:
    """ids in row order, and the row of each id. Deleting moves the last row into the gap, as ScaNN does."""

    def __init__(self, ids: list[str]):
        self.ids = ids
        self.row = {id: row for row, id in enumerate(ids)}

    def __len__(self):
        return len(self.ids)

    def check_known(self, ids: Sequence[str]) -> list[str]:
        ids = check_ids(ids, len(ids))
        unknown = [id for id in ids if id not in self.row]
        if unknown:
            raise RetrievalError(f"not in the index: {listed(unknown)}: nothing was changed")
        return ids

    def append(self, id: str) -> int:
        self.row[id] = len(self.ids)
        self.ids.append(id)
        return self.row[id]

    def remove(self, id: str) -> tuple[int, int]:
        """(the row that is freed, the last row, which now lives there)."""
        row, last = self.row.pop(id), len(self.ids) - 1
        moved = self.ids.pop()
        if row != last:
            self.ids[row], self.row[moved] = moved, row
        return row, last


class ScannIndex:
    """ScaNN (Guo et al. 2020, Anisotropic Vector Quantization), kept from its own pitfalls.

    Built without ScaNN's `docids`: rows are numbered here, so that no failed call can shift names, and nothing is pickled.
    Everything is validated first, because ScaNN ends the process on some bad input and corrupts itself on other.
    """

    def __init__(self, searcher, rows: _Rows, dim: int, trained_on: int, changed: int = 0):
        self._searcher, self._rows, self.dim = searcher, rows, dim
        self._trained_on, self._changed = trained_on, changed  # rows at the last training, and changed since
        self._lock = ReadersWriter()

    @classmethod
    def build(cls, vectors, ids: Sequence[str]) -> "ScannIndex":
        vectors = unit_rows(vectors, None)
        ids = check_ids(ids, len(vectors))
        searcher = _builder(vectors, len(vectors)).build().searcher
        return cls(searcher, _Rows(ids), vectors.shape[1], len(vectors))

    def __len__(self):
        return len(self._rows)

    def __contains__(self, id: str) -> bool:
        return id in self._rows.row

    def search(self, queries, k: int):
        k, queries = check_k(k), unit_rows(queries, self.dim, "queries")
        with self._lock.read():
            size = len(self._rows)
            if size == 0 or len(queries) == 0:
                return [[] for _ in queries], [np.zeros(0, np.float32) for _ in queries]
            k = min(k, size)
            candidates = AS_CONFIGURED if _kind(self._trained_on) == "brute" else max(REORDER, 4 * k)
            parallel = len(queries) > 64
            rows, scores = self._searcher.search_batched(queries, k, candidates, AS_CONFIGURED, parallel, 64)
            # Where ScaNN found fewer than k it pads with row 0 and NaN.
            found = [np.isfinite(score) for score in scores]
            ids = [[self._rows.ids[row] for row in row_k[keep]] for row_k, keep in zip(rows, found, strict=True)]
            return ids, [score[keep] for score, keep in zip(scores, found, strict=True)]

    def upsert(self, vectors, ids: Sequence[str]) -> None:
        vectors = unit_rows(vectors, self.dim)
        ids = check_ids(ids, len(vectors))
        if not ids:
            return
        with self._lock.write():
            where = [self._rows.row.get(id) for id in ids]
            placed = self._searcher.upsert(where, vectors, min(1000, len(ids)))
            expected = [self._rows.append(id) if row is None else row for id, row in zip(ids, where, strict=True)]
            if list(placed) != expected:
                raise RuntimeError(f"ScaNN put rows at {list(placed)[:5]}..., expected {expected[:5]}...: rebuild the index")
            self._retrain(len(ids))

    def delete(self, ids: Sequence[str]) -> None:
        with self._lock.write():
            ids = self._rows.check_known(ids)
            if ids:
                self._searcher.delete([self._rows.remove(id)[0] for id in ids])
                self._retrain(len(ids))

    def save(self, directory, **facts) -> None:
        with self._lock.read():
            save_index(
                directory, lambda folder: self._searcher.serialize(str(folder), True), self._rows.ids,
                kind="scann", dim=self.dim, trained_on=self._trained_on, changed=self._changed, **facts,
            )  # fmt: skip

    @classmethod
    def load(cls, directory) -> tuple["ScannIndex", dict]:
        manifest, ids = read_manifest(directory, "scann")
        if "scann_docids.pkl" in manifest["files"]:  # ScaNN would unpickle it
            raise RetrievalError(f"{directory} holds a pickle, which is never read: build the index again")
        try:
            searcher = _scann().load_searcher(str(Path(directory))).searcher
        except (RuntimeError, ValueError, OSError) as error:
            raise RetrievalError(f"{directory} cannot be loaded by ScaNN ({error}): build the index again") from None
        if searcher.size() != len(ids):
            raise RetrievalError(f"{directory} holds {searcher.size():,} vectors for {len(ids):,} ids: build the index again")
        return cls(searcher, _Rows(ids), manifest["dim"], manifest["trained_on"], manifest["changed"]), manifest

    def _retrain(self, changed: int) -> None:
        """Trains quantiser and partitions again once the size asks for another kind, or enough rows have changed."""
        self._changed += changed
        size, kind = len(self._rows), _kind(self._trained_on)
        grew_out = _kind(size) != kind and size > self._trained_on
        drifted = kind != "brute" and self._changed > RETRAIN_AFTER * self._trained_on
        if grew_out or drifted:
            self._searcher.rebalance(_builder(np.zeros((1, self.dim), np.float32), size).create_config())
            self._trained_on, self._changed = size, 0


def _kind(size: int) -> str:
    return "brute" if size < BRUTE_FORCE_BELOW else "quantised" if size < PARTITIONS_FROM else "partitioned"


def _builder(vectors: np.ndarray, size: int):
    """A ScaNN builder for `size` rows; `vectors` may be a stand-in when only the configuration is wanted."""
    builder = _scann().builder(vectors, 10, "dot_product")
    if _kind(size) == "brute":
        return builder.score_brute_force()
    if _kind(size) == "partitioned":
        leaves = math.isqrt(size)
        builder = builder.tree(leaves, min(leaves, max(40, leaves // 4)), training_sample_size=min(size, 250_000))
    return builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(REORDER)


class ExactIndex:
    """Every query against every vector, on the default JAX device: a matrix product and a top-k.

    Arrays are padded to powers of two, so that a growing memory compiles a handful of times. On a TPU the top-k is
    `approx_max_k` (Chern et al. 2022) at recall 0.99, elsewhere exact.
    """

    def __init__(self, vectors: np.ndarray, rows: _Rows):
        self.dim, self._rows = vectors.shape[1], rows
        self._vectors = _padded(vectors, _power_of_two(len(vectors)))
        self._on_device: jax.Array | None = None
        self._lock = ReadersWriter()

    @classmethod
    def build(cls, vectors, ids: Sequence[str]) -> "ExactIndex":
        vectors = unit_rows(vectors, None)
        return cls(vectors, _Rows(check_ids(ids, len(vectors))))

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
            return [[self._rows.ids[row] for row in row_k] for row_k in rows], list(scores)

    def upsert(self, vectors, ids: Sequence[str]) -> None:
        vectors = unit_rows(vectors, self.dim)
        ids = check_ids(ids, len(vectors))
        with self._lock.write():
            where = [self._rows.row[id] if id in self._rows.row else self._rows.append(id) for id in ids]
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
            save_index(directory, write, self._rows.ids, kind="exact", dim=self.dim, **facts)

    @classmethod
    def load(cls, directory) -> tuple["ExactIndex", dict]:
        manifest, ids = read_manifest(directory, "exact")
        try:
            vectors = np.load(Path(directory) / "vectors.npy", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise RetrievalError(f"{directory} cannot be loaded ({error}): build the index again") from None
        return cls(unit_rows(vectors, manifest["dim"]), _Rows(check_ids(ids, len(vectors)))), manifest


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
