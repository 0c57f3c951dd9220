"""ScannIndex: approximate search on the host. The only module that touches ScaNN."""

import importlib
import importlib.metadata
import logging
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.exact_index import ExactIndex
from retrieval.index import Index, Rows
from retrieval.locks import ReadersWriter
from retrieval.scann_config import with_reach, with_widths
from retrieval.tuning import (
    MEASURED_AT,
    PROBES,
    Recent,
    Setting,
    Tuning,
    Width,
    farther_half,
    kind_for,
    kth_best,
    measured,
    recall_of,
    setting_for,
)
from retrieval.turning import Turned, saved_rows, saved_turn, turn_of
from retrieval.vectors import check_ids, check_k, read_manifest, save_index, unit_rows

logger = logging.getLogger(__name__)

SCANN = "scann.scann_ops.py.scann_ops_pybind"
AVQ = 2.0  # centres by ScaNN's own loss: fewer partitions to search
SOAR = {"soar_lambda": 1.5, "overretrieve_factor": 2.0}  # each row in two (Sun et al. 2023): a third to half as many to search
CHECKS = 32  # of each, on which recall is looked at between
CHECK_AFTER, RETRAIN_AFTER = 0.05, 0.5  # of the rows changed since the training; the next check after twice as many
IMBALANCE = 0.7  # more than at the training: new rows crowd into few partitions, so far from the centres that search misses them
WIDENING = 2  # times the share of changed rows: more partitions and candidates until the next check
CORES = os.cpu_count() or 1
ALL = -1  # what ScaNN takes for "as configured"


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


def _core() -> bool:
    """Whether the module is scann-core's (docs/memory.md): in ScaNN 1.4.2 itself, changes of spilled rows corrupt the heap, and the kernels
    that make codes of two dimensions cheap to read never run."""
    _scann()
    try:
        return getattr(sys.modules["scann"], "__version__", "") == importlib.metadata.version("scann-core")
    except importlib.metadata.PackageNotFoundError:
        return False


class ScannIndex:
    """ScaNN (Guo et al. 2020, Anisotropic Vector Quantization), kept from its own pitfalls.

    Built without ScaNN's `docids`: rows are numbered here, so that no failed call can shift names, and nothing is pickled.
    Everything is validated first, because ScaNN ends the process on some bad input and corrupts itself on other.

    It watches itself: search widens as rows change; once enough have, or they crowd into few partitions, a thread measures recall
    on a sample and, where it has fallen, trains a new searcher beside the old one, which scores every row until one or the other is done.
    """

    def __init__(self, trained: "_Trained", tuning: Tuning, dim: int):
        self._trained, self._tuning, self.dim = trained, tuning, dim
        self._lock = ReadersWriter()
        self._fresh, self._asked = Recent(dim), Recent(dim)
        self._watch: threading.Thread | None = None
        self._missed: list[tuple] | None = None  # changes made while a searcher is trained
        self._quiet_until = 0  # changes; after a training that failed
        self.when_trained: Callable[[], None] = lambda: None  # called by the watch after each training

    @classmethod
    def build(cls, vectors, ids: Sequence[str], tuning: Tuning | None = None) -> "ScannIndex":
        """The index of vectors [N, dim]; what `tuning` leaves open is chosen by size and measured (see `health`)."""
        vectors, tuning = unit_rows(vectors, None), tuning or Tuning()
        ids = check_ids(ids, len(vectors))
        return cls(_Trained.on(vectors, ids, tuning), tuning, vectors.shape[1])

    def __len__(self):
        return len(self._trained.rows)

    def __contains__(self, id: str) -> bool:
        return id in self._trained.rows.row

    def search(self, queries, k: int):
        k, queries = check_k(k), unit_rows(queries, self.dim, "queries")
        self._asked.add(queries)
        with self._lock.read():
            return self._trained.search(queries, k, sure=self._watch is not None)

    def upsert(self, vectors, ids: Sequence[str]) -> None:
        vectors = unit_rows(vectors, self.dim)
        ids = check_ids(ids, len(vectors))
        if ids:
            self._fresh.add(vectors)
            with self._lock.write():
                self._change(_Trained.put, vectors, ids)

    def delete(self, ids: Sequence[str]) -> None:
        with self._lock.write():
            ids = self._trained.rows.check_known(ids)
            if ids:
                self._change(_Trained.drop, ids)

    def save(self, directory, **facts) -> None:
        with self._lock.read():
            own = self._trained.facts() | {"dim": self.dim, "tuning": asdict(self._tuning)}
            save_index(directory, self._trained.write, self._trained.rows.ids(), kind="scann", **own, **facts)

    @classmethod
    def load(cls, directory) -> tuple["ScannIndex", dict]:
        folder, manifest, ids = read_manifest(directory, "scann")
        if "scann_docids.pkl" in manifest["files"]:  # ScaNN would unpickle it
            raise RetrievalError(f"{folder} holds a pickle, which is never read: build the index again")
        if "hashed_dataset_soar.npy" in manifest["files"] and not _core():
            raise RetrievalError(f"{folder} was built with scann-core, and ScaNN 1.4 would corrupt it at a change: build the index again")
        try:
            return cls(_Trained.read(folder, manifest, ids), Tuning(**manifest["tuning"]), manifest["dim"]), manifest
        except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
            if isinstance(error, RetrievalError):
                raise
            raise RetrievalError(f"{folder} cannot be loaded by ScaNN ({error}): build the index again") from None

    def health(self) -> dict:
        """kind, size, leaves, leaves_searched, reorder and reach (for the 10 nearest), trained_on (rows), changed (rows since), imbalance
        of the partitions, recall as last measured of the 10 nearest (1.0 where exact), target, and whether it is training."""
        with self._lock.read():
            trained, training = self._trained, self._watch is not None
            width = trained.width(10) if trained.settings else Width(0, 0)
            facts: dict = {"kind": trained.kind, "size": len(trained.rows), "leaves": trained.leaves, "leaves_searched": width.leaves}
            facts |= {"reorder": width.reorder, "reach": round(width.reach, 4), "trained_on": trained.trained_on}
            facts |= {"changed": trained.changed, "imbalance": trained.imbalance(), "recall": trained.recall}
            return facts | {"target": self._tuning.recall, "training": training}

    def wait(self) -> None:
        """Returns when no check or training is under way."""
        if watch := self._watch:
            watch.join()

    # Watching

    def _change(self, change, *what) -> None:
        """Applies a change, under the write lock, and starts the watch when it is due."""
        change(self._trained, *what)
        if self._missed is not None:
            self._missed.append((change, *(w.copy() for w in what)))
        if self._due() and self._watch is None:
            self._watch = threading.Thread(target=self._look, name="index watch")
            self._watch.start()

    def _due(self) -> str:
        return "" if self._trained.changed < self._quiet_until else self._trained.due()

    def _look(self) -> None:
        """Checks and trains until nothing is due; after a failure the old searcher stays until as much again has changed."""
        while due := self._next():
            try:
                if due == "check":
                    self._check()
                else:
                    logger.info("the index is trained again: %s", due)
                    self._train()
                    self.when_trained()
            except (RuntimeError, ValueError, OSError, MemoryError) as error:
                logger.warning("the index could not be trained again (%s); it is searched as it was trained", error)
                with self._lock.write():
                    self._missed, self._quiet_until = None, 2 * self._trained.changed + 1000

    def _next(self) -> str:
        with self._lock.write():
            due = self._due()
            if not due:
                self._watch = None
            return due

    def _check(self) -> None:
        """Measures recall of the 10 nearest on a few rows of each kind, the worst counts. Edits wait for one probe at a time."""
        trained, recall = self._trained, 1.0
        for probes in (trained.probes, self._fresh.rows(), self._asked.rows()):
            found = [self._recall(probe[None]) for probe in probes[:: -(-len(probes) // CHECKS)]] if len(probes) else []
            recall = min([recall, *([float(np.mean(found))] if found else [])])
        trained.recall, trained.check_at = round(recall, 4), 2 * trained.changed
        if recall < self._tuning.recall:
            trained.doubt = f"recall of {recall:.3f}"

    def _recall(self, probe: np.ndarray) -> float:
        with self._lock.read():
            k = min(10, len(self._trained.rows) - 1)
            if k < 1:
                return 1.0
            last = self._trained.exact(probe, k + 1)[:, -1]
            return recall_of(self._trained.scores(probe, k + 1, self._trained.width(k)), last)

    def _train(self) -> None:
        """Trains a searcher on the rows as they are, makes up for the changes it missed, and puts it in the old one's place."""
        with tempfile.TemporaryDirectory(prefix="index-") as folder:
            with self._lock.read():  # no writer between the copy and the list of what it misses
                self._missed = missed = []
                self._trained.write(Path(folder))
                ids = self._trained.rows.ids()
            trained = _Trained.on(
                unit_rows(saved_rows(Path(folder)), self.dim), ids, self._tuning, [self._fresh.rows(), self._asked.rows()]
            )
        done = 0
        while done < len(missed):
            missed[done][0](trained, *missed[done][1:])
            done += 1
        with self._lock.write():
            for change, *what in missed[done:]:
                change(trained, *what)
            self._trained, self._missed = trained, None
        logger.info("trained on %d rows: %s", trained.trained_on, self.health())


class _Trained:
    """A searcher with its rows and what was found out about it. Changed only by a holder of the index's write lock."""

    def __init__(self, searcher, rows: Rows, probes: np.ndarray, kind: str, leaves: int, trained_on: int, settings: list[Setting], tuning):
        self.searcher, self.rows, self.probes, self.kind, self.leaves = searcher, rows, probes, kind, leaves
        self.trained_on, self.settings, self.tuning = trained_on, settings, tuning
        self.recall = settings[0].recall if settings else 1.0
        self.changed, self.check_at, self.doubt = 0, CHECK_AFTER * trained_on, ""
        self.widths: dict[int, Width] = {}  # by k, until the rows change
        self.balance = self.imbalance()

    @classmethod
    def on(cls, vectors: np.ndarray, ids: list[str], tuning: Tuning, probes: Sequence[np.ndarray] = ()) -> "_Trained":
        """Trained on unit rows [N, dim] and tuned on some of them and the farther half of each of `probes` [P, dim]: the worst counts."""
        size, dim = vectors.shape
        kind = kind_for(size, tuning)
        leaves = min(tuning.leaves or 2 * math.isqrt(size), size) if kind == "partitioned" else 1
        core = kind != "brute" and _core()
        spilled = core and kind == "partitioned"
        needed = needed_bytes(size, dim, kind, spilled) / 1e6
        logger.info("a %s index of %d x %d vectors takes %.0f MB beside them", kind, size, dim, needed)
        turn, widths = (None, []) if kind == "brute" or core else turn_of(vectors)
        rows = vectors if turn is None else vectors @ turn
        builder = _scann().builder(rows, 10, "dot_product")
        if kind == "partitioned":
            builder = builder.tree(leaves, leaves, training_sample_size=min(size, 250_000), avq=AVQ, **(SOAR if spilled else {}))
        builder = builder.score_brute_force() if kind == "brute" else builder.score_ah(2, 0.2).reorder(100)
        config = with_reach(builder.create_config())
        searcher = _scann().create_searcher(rows, with_widths(config, widths) if widths else config)
        sample = np.random.default_rng(size).choice(size, min(size, PROBES), replace=False)
        own = np.array(vectors[np.sort(sample)])
        trained = cls(_turned(searcher.searcher, turn), Rows(ids), own, kind, leaves, size, [], tuning)
        if kind != "brute":
            kinds = [own, *(farther_half(vectors, some) for some in probes if len(some))]
            asked, cuts = np.concatenate(kinds), np.cumsum([len(some) for some in kinds])[:-1]
            trained.settings = [trained._measured(asked, kth_best(vectors, asked, k + 1), k, cuts) for k in MEASURED_AT if k < size]
            trained.recall = trained.settings[0].recall
        return trained

    def _measured(self, probes, last, k, cuts):
        scores = lambda k, *width: self.scores(probes, k, Width(*width))
        scanned = lambda *way: self._scanned(probes[:: -(-len(probes) // CHECKS)], *way)
        return measured(scores, scanned, last, k, self.leaves, len(self.rows), self.tuning, cuts)

    def search(self, queries: np.ndarray, k: int, sure: bool):
        size = len(self.rows.row)
        if size == 0 or len(queries) == 0:
            return [[] for _ in queries], [np.zeros(0, np.float32) for _ in queries]
        k = min(k, size)
        width = Width(self.leaves, size) if self.settings and (sure or self.doubt) else self.width(k)
        if len(queries) == 1:  # ScaNN's own path for one query, on this thread, which gives few where it finds few
            rows, scores = self.searcher.search(queries[0] / width.reach, k, width.reorder, width.leaves)
            if len(rows) == k:
                return [self.rows.at(rows)], [scores * width.reach]
        rows, scores = self._found(queries, k, width)
        short = np.isnan(scores[:, -1])  # the partitions searched held fewer than k: ScaNN pads with row 0 and NaN
        if short.any():
            rows[short], scores[short] = self._found(queries[short], k, Width(self.leaves, width.reorder))
        return self.rows.named(rows, scores)

    def width(self, k: int) -> Width:
        if not self.settings:
            return Width(ALL, ALL)
        if k not in self.widths:
            widened = 1 + WIDENING * self.changed / self.trained_on
            self.widths[k] = setting_for(self.settings, k, self.leaves, len(self.rows), self.tuning, widened)
        return self.widths[k]

    def scores(self, queries: np.ndarray, k: int, width: Width) -> np.ndarray:
        return self._found(queries, k, width)[1]

    def exact(self, queries: np.ndarray, k: int) -> np.ndarray:
        """The k best scores: every row is a candidate, in every partition."""
        return self.scores(queries, k, Width(self.leaves, len(self.rows)))

    def _scanned(self, queries, leaves, reach) -> float:
        """How many rows a search looks at, by asking for all that it has seen."""
        size = len(self.rows)
        if self.leaves == 1:
            return size
        return float(np.mean([len(self.searcher.search(query / reach, size, size, leaves)[0]) for query in queries]))

    def _found(self, queries, k, width):
        batch = min(1024, -(-len(queries) // CORES))
        rows, scores = self.searcher.search_batched(queries / width.reach, k, width.reorder, width.leaves, batch > 32, batch)
        return rows, scores * width.reach

    def put(self, vectors: np.ndarray, ids: list[str]) -> None:
        where = [self.rows.row.get(id) for id in ids]
        placed = self.searcher.upsert(where, vectors, min(1000, len(ids)))
        expected = [self.rows.place(id) for id in ids]
        if list(placed) != expected:
            raise RuntimeError(f"ScaNN put rows at {list(placed)[:5]}..., expected {expected[:5]}...: rebuild the index")
        self._has_changed(len(ids))

    def drop(self, ids: list[str]) -> None:
        self.searcher.delete([self.rows.remove(id)[0] for id in ids])
        self._has_changed(len(ids))

    def _has_changed(self, rows: int) -> None:
        self.changed += rows
        self.widths = {}

    def imbalance(self) -> float:
        if self.kind != "partitioned":
            return 0.0
        if not self.searcher.get_health_stats()["sum_partition_sizes"]:
            self.searcher.initialize_health_stats()
        return round(self.searcher.get_health_stats()["partition_weighted_avg_relative_imbalance"], 4)

    def due(self) -> str:
        """Why it is to be trained again, "check" if recall is to be looked at first, or "" if all is well."""
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
        return "check" if self.changed > self.check_at else ""

    def write(self, folder: Path) -> None:
        self.searcher.serialize(str(folder), True)

    def facts(self) -> dict:
        names = ("leaves", "trained_on", "changed", "check_at", "recall", "balance")
        return {"search": self.kind, "settings": [asdict(s) for s in self.settings]} | {name: getattr(self, name) for name in names}

    @classmethod
    def read(cls, folder: Path, manifest: dict, ids: list[str]) -> "_Trained":
        searcher = _turned(_scann().load_searcher(str(folder)).searcher, saved_turn(folder))
        if searcher.size() != len(ids):
            raise RetrievalError(f"{folder} holds {searcher.size():,} vectors for {len(ids):,} ids: build the index again")
        probes = saved_rows(folder, every=-(-len(ids) // PROBES) or 1)
        settings = [Setting(**s) for s in manifest["settings"]]
        tuning = Tuning(**manifest["tuning"])
        read = cls(searcher, Rows(ids), probes, manifest["search"], manifest["leaves"], manifest["trained_on"], settings, tuning)
        read.changed, read.check_at = manifest["changed"], manifest["check_at"]
        read.recall, read.balance = manifest["recall"], manifest["balance"]
        return read


def _turned(searcher, turn: np.ndarray | None):
    return searcher if turn is None else Turned(searcher, turn)


def needed_bytes(size: int, dim: int, kind: str, spilled: bool = False) -> int:
    """Memory of an index beside the vectors it is built from: its own copy, 4 bits for 2 dimensions, and each row's partition, or both."""
    return size * dim * 4 + (1 + spilled) * ((0 if kind == "brute" else size * dim // 4) + (8 * size if kind == "partitioned" else 0))
