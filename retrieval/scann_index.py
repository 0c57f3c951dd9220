"""ScannIndex: approximate search on the host. The only module that touches ScaNN."""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.exact_index import ExactIndex
from retrieval.index import Index, Rows
from retrieval.locks import ReadersWriter
from retrieval.vectors import check_ids, check_k, read_manifest, save_index, unit_rows

SCANN = "scann.scann_ops.py.scann_ops_pybind"
BRUTE_FORCE_BELOW = 20_000  # rows (ScaNN docs/algorithms.md); above: quantised scores, the best of them scored again exactly
PARTITIONS_FROM = 100_000  # rows; above: sqrt(n) partitions, of which a quarter, at least 40, is searched
REORDER = 200  # candidates scored exactly
RETRAIN_AFTER = 0.5  # of the rows changed since the quantiser was trained: drift costs recall
AS_CONFIGURED = -1  # what ScaNN takes for "as configured"


def default_index() -> type[Index]:
    """ScannIndex where ScaNN runs (Linux), else ExactIndex."""
    try:
        _scann()
    except RetrievalError:
        return ExactIndex
    return ScannIndex


def _scann():
    try:
        return importlib.import_module(SCANN)
    except ImportError as error:
        raise RetrievalError(
            f"ScaNN is not available ({error}): its wheels exist for Linux on x86-64 with AVX and on ARM; "
            "install scann there, or use retrieval.ExactIndex, which searches exactly on any machine"
        ) from None


class ScannIndex:
    """ScaNN (Guo et al. 2020, Anisotropic Vector Quantization), kept from its own pitfalls.

    Built without ScaNN's `docids`: rows are numbered here, so that no failed call can shift names, and nothing is pickled.
    Everything is validated first, because ScaNN ends the process on some bad input and corrupts itself on other.
    """

    def __init__(self, searcher, rows: Rows, dim: int, trained_on: int, changed: int = 0):
        self._searcher, self._rows, self.dim = searcher, rows, dim
        self._trained_on, self._changed = trained_on, changed  # rows at the last training, and changed since
        self._lock = ReadersWriter()

    @classmethod
    def build(cls, vectors, ids: Sequence[str]) -> "ScannIndex":
        vectors = unit_rows(vectors, None)
        ids = check_ids(ids, len(vectors))
        searcher = _builder(vectors, len(vectors)).build().searcher
        return cls(searcher, Rows(ids), vectors.shape[1], len(vectors))

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
        return cls(searcher, Rows(ids), manifest["dim"], manifest["trained_on"], manifest["changed"]), manifest

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
