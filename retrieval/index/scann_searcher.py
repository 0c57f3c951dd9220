"""Searcher: a trained ScaNN searcher with its rows and search settings.

The only module that touches ScaNN.
"""

import contextlib
import importlib
import importlib.metadata
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.index.index import Rows
from retrieval.index.rotation import Turned, saved_rows, saved_turn, turn_of, turned
from retrieval.index.scann_config import anisotropy, with_reach, with_widths
from retrieval.index.side_buffer import Unproven
from retrieval.index.tuning import (
    MEASURED_AT,
    PROBES,
    Setting,
    Tuning,
    Width,
    best_scores,
    farther_half,
    kind_for,
    measured,
    setting_for,
)

logger = logging.getLogger(__name__)

SCANN = "scann.scann_ops.py.scann_ops_pybind"
AVQ = 2.0  # centres trained with ScaNN's anisotropic loss: fewer partitions to search
# Each row is in two partitions (Sun et al. 2023): a third to half as many to search.
SOAR = {"soar_lambda": 1.5, "overretrieve_factor": 2.0}
CHECKS = 32  # probes of each kind in a check of recall; all PROBES if recall has fallen
RETRAIN_AFTER = 0.5  # fraction of rows changed since training
# Rise in imbalance since training at which new rows are taken to crowd into few partitions, far
# from the centres, where a search misses them.
IMBALANCE = 0.7
WIDENING = 2  # growth of partitions and candidates per fraction of changed rows
CORES = os.cpu_count() or 1
ALL = -1  # ScaNN's "as configured"


def package():
    try:
        return importlib.import_module(SCANN)
    except ImportError as error:
        raise RetrievalError(
            f"ScaNN is not available ({error}): its wheels exist for Linux on x86-64 with AVX and "
            "on ARM; install scann there, or use retrieval.ExactIndex, which searches exactly on "
            "any machine"
        ) from None


def is_core() -> bool:
    """Whether the installed module is scann-core's (docs/memory.md).

    In ScaNN 1.4.2, changes to spilled rows corrupt the heap, and the kernels that make
    2-dimensional codes cheap to read never run.
    """
    package()
    try:
        return getattr(sys.modules["scann"], "__version__", "") == importlib.metadata.version(
            "scann-core"
        )
    except importlib.metadata.PackageNotFoundError:
        return False


class Searcher:
    """A trained searcher, its rows and its measurements.

    Changed only under the index's write lock.
    """

    def __init__(
        self,
        searcher,
        rows: Rows,
        probes: np.ndarray,
        kind: str,
        leaves: int,
        trained_on: int,
        settings: list[Setting],
        tuning,
    ):
        self.searcher, self.rows, self.probes, self.kind, self.leaves = (
            searcher,
            rows,
            probes,
            kind,
            leaves,
        )
        self.trained_on, self.settings, self.tuning = trained_on, settings, tuning
        self.changed, self.doubt, self.unproven = 0, "", Unproven(probes.shape[1], rows.numbers)
        self.query_recall: float | None = None
        self.set(settings)
        self.balance = self.imbalance()

    @classmethod
    def on(
        cls, vectors: np.ndarray, rows: Rows, tuning: Tuning, probes: Sequence[np.ndarray] = ()
    ) -> "Searcher":
        """Train on unit vectors [N, dim] and tune the search settings.

        They are tuned on a sample of the vectors and the farther half of each of `probes` [P, dim];
        the lowest recall of these kinds counts.
        """
        size, dim = vectors.shape
        kind = kind_for(size, tuning)
        leaves = min(tuning.leaves or 2 * math.isqrt(size), size) if kind == "partitioned" else 1
        core = kind != "brute" and is_core()
        spilled = core and kind == "partitioned"
        needed = needed_bytes(size, dim, kind, spilled) / 1e6
        logger.info(
            "a %s index of %d x %d vectors takes %.0f MB beside them", kind, size, dim, needed
        )
        turn, widths = (None, []) if kind == "brute" or core else turn_of(vectors)
        given = vectors if turn is None else turned(vectors, turn)
        builder = package().builder(given, 10, "dot_product")
        if kind == "partitioned":
            builder = builder.tree(
                leaves,
                leaves,
                training_sample_size=min(size, 250_000),
                avq=AVQ,
                **(SOAR if spilled else {}),
            )
        builder = (
            builder.score_brute_force()
            if kind == "brute"
            else builder.score_ah(2, anisotropy(dim)).reorder(100)
        )
        config = with_reach(builder.create_config())
        searcher = package().create_searcher(
            given, with_widths(config, widths) if widths else config
        )
        sample = np.random.default_rng(size).choice(size, min(size, PROBES), replace=False)
        own = np.array(vectors[np.sort(sample)])
        trained = cls(_turned(searcher.searcher, turn), rows, own, kind, leaves, size, [], tuning)
        if kind != "brute":
            trained.set(
                trained.tuned(probes, lambda some: best_scores(vectors, some, max(MEASURED_AT) + 1))
            )
        return trained

    def set(self, settings: list[Setting]) -> None:
        self.settings, self.recall = settings, settings[0].recall if settings else 1.0
        self.widths: dict[int, Width] = {}  # by k; cleared when rows change

    def tuned(
        self, others: Sequence[np.ndarray], best: Callable, lock: Callable = contextlib.nullcontext
    ) -> list[Setting]:
        """Return settings that suit the rows' own probes and the farther half of each of `others`.

        others: arrays [P, dim]; the lowest recall counts. best(probes) -> [P, k]: their exact best
        scores, descending. lock() is held for some probes at a time.
        """
        kinds = [
            (self.probes, best(self.probes)),
            *(farther_half(some, best(some)) for some in others if len(some)),
        ]
        asked, scores = map(np.concatenate, zip(*kinds, strict=True))
        cuts, few = (
            np.cumsum([len(some) for some, _ in kinds])[:-1].tolist(),
            asked[:: -(-len(asked) // CHECKS)],
        )

        def found(k: int, *width) -> np.ndarray:
            parts = []
            for some in np.split(asked, range(128, len(asked), 128)):
                with lock():
                    parts.append(self.scores(some, k, Width(*width)))
            return np.concatenate(parts)

        def scanned(*way) -> float:
            with lock():
                return self._scanned(few, *way)

        return [
            measured(
                found, scanned, scores[:, k], k, self.leaves, len(self.rows), self.tuning, cuts
            )
            for k in MEASURED_AT
            if k < scores.shape[1]
        ]

    def search(self, queries: np.ndarray, k: int):
        size = len(self.rows.row)
        k = min(k, size)
        if k == 0 or len(queries) == 0:
            return self.rows.answer(
                np.zeros((len(queries), k), int), np.zeros((len(queries), k), np.float32)
            )
        return self.unproven.beside(
            queries,
            k,
            *self._near(queries, k, Width(self.leaves, size) if self.doubt else self.width(k)),
        )

    def _near(self, queries: np.ndarray, k: int, width: Width):
        # ScaNN's single-query path runs on this thread and may return fewer than k rows.
        if len(queries) == 1:
            rows, scores = self.searcher.search(
                queries[0] / width.reach, k, width.reorder, width.leaves
            )
            if len(rows) == k:
                return self.rows.answer_one(rows, scores * width.reach)
        rows, scores = self._found(queries, k, width)
        # Where the searched partitions hold fewer than k rows, ScaNN pads with row 0 and NaN.
        short = np.isnan(scores[:, -1])
        if not short.any():
            return self.rows.answer(rows, scores)
        rows[short], scores[short] = self._found(
            queries[short], k, Width(self.leaves, width.reorder)
        )
        return self.rows.named(rows, scores)

    def width(self, k: int) -> Width:
        if not self.settings:
            return Width(ALL, ALL)
        if k not in self.widths:
            widened = 1 + WIDENING * self.changed / self.trained_on
            self.widths[k] = setting_for(
                self.settings, k, self.leaves, len(self.rows), self.tuning, widened
            )
        return self.widths[k]

    def scores(self, queries: np.ndarray, k: int, width: Width) -> np.ndarray:
        return self._found(queries, k, width)[1]

    def exact(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the k best scores, with every row of every partition a candidate."""
        return self.scores(queries, k, Width(self.leaves, len(self.rows)))

    def _scanned(self, queries, leaves, reach) -> float:
        """Return the mean number of rows that a search scans, by asking for all of them."""
        size = len(self.rows)
        if self.leaves == 1:
            return size
        return float(
            np.mean(
                [
                    len(self.searcher.search(query / reach, size, size, leaves)[0])
                    for query in queries
                ]
            )
        )

    def _found(self, queries, k, width):
        batch = min(1024, -(-len(queries) // CORES))
        rows, scores = self.searcher.search_batched(
            queries / width.reach, k, width.reorder, width.leaves, batch > 32, batch
        )
        return rows, scores * width.reach

    def put(self, vectors: np.ndarray, ids: list) -> None:
        where = [self.rows.row.get(id) for id in ids]
        placed = self.searcher.upsert(where, vectors, min(1000, len(ids)))
        expected = [self.rows.place(id) for id in ids]
        if list(placed) != expected:
            raise RuntimeError(
                f"ScaNN put rows at {list(placed)[:5]}..., expected {expected[:5]}...: rebuild "
                "the index"
            )
        if self.settings:
            self.unproven.put(vectors, ids)
        self._has_changed(len(ids))

    def drop(self, ids: list) -> None:
        self.searcher.delete([self.rows.remove(id)[0] for id in ids])
        self.unproven.drop(ids)
        self._has_changed(len(ids))

    def _has_changed(self, rows: int) -> None:
        self.changed += rows
        self.widths = {}

    def imbalance(self) -> float:
        if self.kind != "partitioned":
            return 0.0
        if not self.searcher.get_health_stats()["sum_partition_sizes"]:
            self.searcher.initialize_health_stats()
        return round(
            self.searcher.get_health_stats()["partition_weighted_avg_relative_imbalance"], 4
        )

    def due(self) -> str:
        """Why to train again; "check" if recall is to be measured; "" if nothing is due."""
        size, kind = len(self.rows), kind_for(len(self.rows), self.tuning)
        if kind != self.kind and size > self.trained_on:
            return f"{size} rows make it {kind}"
        if self.kind == "brute":
            return ""
        if (imbalance := self.imbalance()) > self.balance + IMBALANCE:
            self.doubt = f"imbalance of {imbalance}"
        if self.doubt:
            return self.doubt
        if self.changed > RETRAIN_AFTER * self.trained_on:
            return f"{self.changed} rows changed"
        return "check" if self.enough() else ""

    def enough(self) -> bool:
        """Whether there are enough unproven rows to measure their recall."""
        return len(self.unproven) >= max(PROBES, math.isqrt(len(self.rows)))

    def write(self, folder: Path) -> None:
        self.searcher.serialize(str(folder), True)

    def facts(self) -> dict:
        names = ("leaves", "trained_on", "changed", "doubt", "recall", "query_recall", "balance")
        facts = {"search": self.kind, "settings": [asdict(s) for s in self.settings]} | {
            name: getattr(self, name) for name in names
        }
        return facts | {"unproven": [self.rows.row[id] for id in self.unproven.ids()]}

    @classmethod
    def read(cls, folder: Path, manifest: dict, ids: list) -> "Searcher":
        if "hashed_dataset_soar.npy" in manifest["files"] and not is_core():
            raise RetrievalError(
                f"{folder} was built with scann-core, and ScaNN 1.4 would corrupt it at a "
                "change: build the index again"
            )
        searcher = _turned(package().load_searcher(str(folder)).searcher, saved_turn(folder))
        if searcher.size() != len(ids):
            raise RetrievalError(
                f"{folder} holds {searcher.size():,} vectors for {len(ids):,} ids: build the "
                "index again"
            )
        probes = saved_rows(folder, slice(None, None, -(-len(ids) // PROBES) or 1))
        settings = [Setting(**s) for s in manifest["settings"]]
        tuning = Tuning(**manifest["tuning"])
        rows = Rows(ids, manifest.get("numbers", False))
        read = cls(
            searcher,
            rows,
            probes,
            manifest["search"],
            manifest["leaves"],
            manifest["trained_on"],
            settings,
            tuning,
        )
        read.changed, read.recall, read.balance = (
            manifest["changed"],
            manifest["recall"],
            manifest["balance"],
        )
        read.query_recall = manifest.get("query_recall")
        read.doubt, unproven = manifest.get("doubt", ""), manifest.get("unproven", [])
        read.unproven.put(saved_rows(folder, unproven), read.rows.at(unproven))
        return read


def _turned(searcher, turn: np.ndarray | None):
    return searcher if turn is None else Turned(searcher, turn)


def needed_bytes(size: int, dim: int, kind: str, spilled: bool = False) -> int:
    """Return the memory of an index beside the vectors it is built from.

    It holds its own copy, 4 bits per 2 dimensions, and the partition of each row. spilled: each row
    is in two partitions.
    """
    return size * dim * 4 + (1 + spilled) * (
        (0 if kind == "brute" else size * dim // 4) + (8 * size if kind == "partitioned" else 0)
    )
