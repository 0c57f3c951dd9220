"""ScannIndex: approximate search on the host that measures its recall and retrains itself."""

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.index.exact import ExactIndex
from retrieval.index.index import Index, Rows
from retrieval.index.rotation import saved_rows
from retrieval.index.scann_searcher import CHECKS, Searcher, is_core, needed_bytes, package
from retrieval.index.tuning import MEASURED_AT, PROBES, Recent, Tuning, Width, kind_for, recall_of
from retrieval.index.vectors import Ids, check_k, read_manifest, save_index, unit_rows
from retrieval.store.locks import ReadersWriter

logger = logging.getLogger(__name__)

USUAL = 0.99  # fraction of the tuned recall that still counts as unchanged
SURELY = 2  # standard errors of a measured recall
REST = 9  # pause after a check, in multiples of its time: at most a tenth of one core


def default_index() -> type[Index]:
    """ScannIndex where ScaNN runs (Linux), else ExactIndex."""
    try:
        package()
    except RetrievalError:
        return ExactIndex
    return ScannIndex


def needed_megabytes(size: int, dim: int) -> tuple[float, float]:
    """Return (memory of the default index, peak memory while it is built), in MB."""
    if default_index() is ExactIndex:
        return size * dim * 4 / 1e6, 2 * size * dim * 4 / 1e6
    kind = kind_for(size, Tuning())
    kept = needed_bytes(size, dim, kind, kind == "partitioned" and is_core())
    # While building: the vectors, and a rotated copy where ScaNN is given one.
    return kept / 1e6, (kept + (1 if kind == "brute" or is_core() else 2) * size * dim * 4) / 1e6


class ScannIndex:
    """A ScaNN index (Guo et al. 2020, Anisotropic Vector Quantization) that checks itself.

    It is built without ScaNN's `docids`: rows are numbered here, so a failed call cannot shift
    names and nothing is pickled. All input is validated first, as ScaNN ends the process on some
    bad input and corrupts itself on other.

    New rows are also scored exactly until a background thread (the watch) has measured that the
    searcher finds rows like them. If it does not, or if rows crowd into few partitions, every row
    is scored until a new searcher is trained beside the old one. Recall is measured after every 256
    queries; if only recent queries have low recall, the search is widened for them.
    """

    def __init__(self, trained: Searcher, tuning: Tuning, dim: int):
        self._trained, self._tuning, self.dim, self.numbers = (
            trained,
            tuning,
            dim,
            trained.rows.numbers,
        )
        self._lock = ReadersWriter()
        self._fresh, self._asked = Recent(dim), Recent(dim)
        self._watch: threading.Thread | None = None
        self._missed: list[tuple] | None = None  # changes made while a searcher is trained
        self._quiet_until = 0  # changed rows before the next attempt, after a failed training
        # Queries asked at the last check; time.monotonic() before which no check starts.
        self._measured, self._rest_until = 0, 0.0
        self.when_trained: Callable[[], None] = lambda: None  # called after each training

    @classmethod
    def build(cls, vectors, ids: Ids, tuning: Tuning | None = None) -> "ScannIndex":
        """Build an index of vectors [N, dim].

        What `tuning` leaves open is chosen by size and measured (see `health`).
        """
        vectors, tuning = unit_rows(vectors, None), tuning or Tuning()
        return cls(
            Searcher.on(vectors, Rows.of(ids, len(vectors)), tuning), tuning, vectors.shape[1]
        )

    def __len__(self):
        return len(self._trained.rows)

    def __contains__(self, id: str | int) -> bool:
        return id in self._trained.rows.row

    def search(self, queries, k: int):
        k, queries = check_k(k), unit_rows(queries, self.dim, "queries")
        self._asked.add(queries)
        with self._lock.read():
            trained = self._trained
            found = trained.search(queries, k)
        if self._watch is None and trained.settings and (trained.doubt or self._asks_a_check()):
            with self._lock.write():
                self._start_watch()
        return found

    def upsert(self, vectors, ids: Ids) -> None:
        vectors = unit_rows(vectors, self.dim)
        ids = self._trained.rows.check(ids, len(vectors))
        if ids:
            self._fresh.add(vectors)
            with self._lock.write():
                self._change(Searcher.put, vectors, ids)

    def delete(self, ids: Ids) -> None:
        with self._lock.write():
            ids = self._trained.rows.check_known(ids)
            if ids:
                self._change(Searcher.drop, ids)

    def save(self, directory, **facts) -> None:
        with self._lock.read():
            own = self._trained.facts() | {
                "dim": self.dim,
                "numbers": self.numbers,
                "tuning": asdict(self._tuning),
            }
            save_index(
                directory,
                self._trained.write,
                self._trained.rows.ids(),
                kind="scann",
                **own,
                **facts,
            )

    @classmethod
    def load(cls, directory) -> tuple["ScannIndex", dict]:
        folder, manifest, ids = read_manifest(directory, "scann")
        if "scann_docids.pkl" in manifest["files"]:  # ScaNN would unpickle it
            raise RetrievalError(
                f"{folder} holds a pickle, which is never read: build the index again"
            )
        try:
            return cls(
                Searcher.read(folder, manifest, ids), Tuning(**manifest["tuning"]), manifest["dim"]
            ), manifest
        except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
            if isinstance(error, RetrievalError):
                raise
            raise RetrievalError(
                f"{folder} cannot be loaded by ScaNN ({error}): build the index again"
            ) from None

    def health(self) -> dict:
        """Return the state of the index as plain values.

        kind, size.
        leaves, leaves_searched, reorder, reach: for the 10 nearest.
        trained_on: rows. changed: rows since then. unproven: of these, rows scored exactly.
        imbalance: of the partitions.
        recall: of the 10 nearest, as last measured on its own rows (1.0 where exact).
        query_recall: for the latest 256 queries; None before there are as many; 1.0 where exact.
        target: the recall aimed at. training: whether it is measuring or training now.
        """
        with self._lock.read():
            trained, training = self._trained, self._watch is not None
            width = trained.width(10) if trained.settings else Width(0, 0)
            facts: dict = {
                "kind": trained.kind,
                "size": len(trained.rows),
                "leaves": trained.leaves,
                "leaves_searched": width.leaves,
            }
            facts |= {
                "reorder": width.reorder,
                "reach": round(width.reach, 4),
                "trained_on": trained.trained_on,
            }
            facts |= {
                "changed": trained.changed,
                "unproven": len(trained.unproven),
                "imbalance": trained.imbalance(),
            }
            recalls = {
                "recall": trained.recall,
                "query_recall": trained.query_recall if trained.settings else 1.0,
            }
            return facts | recalls | {"target": self._tuning.recall, "training": training}

    def wait(self) -> None:
        """Wait until no check or training is running or due."""
        while True:
            with self._lock.write():
                self._rest_until = 0.0
                self._start_watch()
                watch = self._watch
            if watch is None:
                return
            watch.join()

    # The watch: a thread that checks recall and retrains

    def _change(self, change, *what) -> None:
        """Apply a change, under the write lock, and start the watch if it is due."""
        change(self._trained, *what)
        if self._missed is not None:
            self._missed.append((change, *(w.copy() for w in what)))
        self._start_watch()

    def _start_watch(self) -> None:
        if self._watch is None and self._due():
            self._watch = threading.Thread(target=self._look, name="index watch")
            self._watch.start()

    def _due(self) -> str:
        trained = self._trained
        if trained.changed < self._quiet_until:
            return ""
        return trained.due() or ("check" if trained.settings and self._asks_a_check() else "")

    def _asks_a_check(self) -> bool:
        return self._asked.count >= self._measured + PROBES and time.monotonic() >= self._rest_until

    def _look(self) -> None:
        """Check and train until nothing is due.

        After a failure the old searcher stays until as many rows again have changed.
        """
        while due := self._next():
            try:
                if due == "check":
                    self._check()
                else:
                    logger.info("the index is trained again: %s", due)
                    self._train()
                    self.when_trained()
            except (RuntimeError, ValueError, OSError, MemoryError) as error:
                logger.warning(
                    "the index could not be trained again (%s); it is searched as it was trained",
                    error,
                )
                with self._lock.write():
                    self._missed, self._quiet_until = None, 2 * self._trained.changed + 1000

    def _next(self) -> str:
        with self._lock.write():
            due = self._due()
            if not due:
                self._watch = None
            return due

    def _check(self) -> None:
        """Measure recall of the 10 nearest for each kind of probe.

        The lock is held for one probe at a time, so edits wait only briefly.
        """
        with self._lock.write():
            trained, self._measured, began = self._trained, self._asked.count, time.monotonic()
            fresh, look, many = (
                trained.unproven.sample(PROBES),
                trained.unproven.look(),
                trained.enough(),
            )
        aim, usual = self._tuning.recall, USUAL * trained.settings[0].recall
        # Settings given by the user may reach less than the target: then only a recall clearly
        # below what they reached is too low.
        margin = SURELY if usual >= aim else -SURELY
        aim = min(aim, usual)

        def look_at(probes: np.ndarray, own: int = 1) -> tuple[float, float]:
            recall, error = self._recall(probes, aim, own)
            return recall - margin * error, recall

        (least, own), (for_asked, asked) = (
            min(map(look_at, (trained.probes, fresh))),
            look_at(self._asked.rows(), own=0),
        )
        with self._lock.write():
            trained.recall = round(own, 4)
            trained.query_recall = round(asked, 4) if self._measured >= PROBES else None
            if least >= aim:
                if many:  # a few rows may be found only until more of their kind crowd them out
                    trained.unproven.proven(look)
            elif own < aim:
                trained.doubt = f"recall of {own:.3f}"
        if own >= aim > min(least, for_asked):
            logger.info(
                "the index is tuned again: recall of %.3f, of %.3f for the queries asked",
                own,
                asked,
            )
            best = lambda probes: np.concatenate(
                [self._best(probe[None], max(MEASURED_AT) + 1) for probe in probes]
            )
            settings = trained.tuned(
                [fresh, self._fresh.rows(), self._asked.rows()], best, self._lock.read
            )
            with self._lock.write():
                trained.set(settings)
            trained.query_recall = round(self._recall(self._asked.rows(), aim, own=0)[0], 4)
            self.when_trained()
        self._rest_until = time.monotonic() + REST * (time.monotonic() - began)

    def _recall(self, probes: np.ndarray, aim: float, own: int = 1) -> tuple[float, float]:
        """Return recall of the 10 nearest and its standard error.

        A few probes are measured first; the rest follow unless the few clearly reach `aim`. own:
        see `recall_of`.
        """
        few, found, recall, error = np.s_[:: -(-len(probes) // CHECKS) or 1], [], 1.0, 0.0
        for some in (probes[few], np.delete(probes, few, axis=0)):
            found += [self._recall_of(probe[None], own) for probe in some]
            if found:
                recall, error = float(np.mean(found)), float(np.std(found)) / len(found) ** 0.5
            if recall - SURELY * error >= aim:
                break
        return recall, error

    def _recall_of(self, probe: np.ndarray, own: int) -> float:
        with self._lock.read():
            k = min(10, len(self._trained.rows) - own)
            if k < 1:
                return 1.0
            last = self._trained.exact(probe, k + own)[:, -1]
            return recall_of(
                self._trained.scores(probe, k + own, self._trained.width(k)), last, own
            )

    def _best(self, probe: np.ndarray, k: int) -> np.ndarray:
        with self._lock.read():
            return self._trained.exact(probe, min(k, len(self._trained.rows)))

    def _train(self) -> None:
        """Train a searcher on the current rows, replay missed changes and swap it in."""
        with tempfile.TemporaryDirectory(prefix="index-") as folder:
            with self._lock.read():  # no writer between the copy and the start of the missed list
                self._missed = missed = []
                self._trained.write(Path(folder))
                rows, few = (
                    Rows(self._trained.rows.ids(), self.numbers),
                    None if self._trained.enough() else self._trained.unproven.rows(),
                )
            trained = Searcher.on(
                unit_rows(saved_rows(Path(folder)), self.dim),
                rows,
                self._tuning,
                [self._fresh.rows(), self._asked.rows()],
            )
        if few and trained.settings:  # training hardly sees a kind of row that is rare
            trained.unproven.put(*few)
        done = 0
        while done < len(missed):
            missed[done][0](trained, *missed[done][1:])
            done += 1
        with self._lock.write():
            for change, *what in missed[done:]:
                change(trained, *what)
            self._trained, self._missed, self._measured = (
                trained,
                None,
                max(0, self._asked.count - PROBES),
            )
        logger.info("trained on %d rows: %s", trained.trained_on, self.health())
