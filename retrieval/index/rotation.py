"""Rotation of vectors before quantisation, so that low-variance directions share a code.

ScaNN spends 4 bits on every 2 dimensions alike, and its search time goes into reading these codes.
Embeddings vary in few directions (optimised product quantisation, Ge et al. 2013, section 3). By
rate-distortion theory (a Gaussian of variance v coded in b bits has distortion v / 4^b) a code over
d dimensions leaves v * 4^(-4/d) of each. Halving d then gains, per code, 3/4 v at d = 4, 2 v at 8
and 3.3 v at 16. Each direction gets the widest code whose halving would gain less than a third of
the mean variance.

A full rotation of many dimensions does not fit a processor's second-level cache and costs a query
more time than the codes it saves. There only the first directions are rotated, by as many
Householder reflections (compact form of Schreiber & Van Loan 1989).
"""

import contextlib
import functools
import os
import threading
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

# (dimensions of a code, least share of the mean variance of a direction in it)
WIDTHS = ((2, 0.44), (4, 0.17), (8, 0.10))
WIDEST = 16
WORTH = 0.8  # share of ScaNN's codes; with more left, a rotation costs more than it saves
WHOLE, REFLECTIONS = 512, 64  # most dimensions of a full rotation; reflections above that
SAMPLE = 20_000
FILE = "turn.npy"


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


class _Alone(contextlib.ContextDecorator):
    """Run BLAS on the calling thread alone.

    Its worker threads would spin after a product, on the cores that ScaNN needs next. The number of
    threads is a setting of the process: the first to enter sets it and the last to leave restores
    it. A fork waits until nobody is inside (such as an index's watch): a BLAS forked while working
    waits forever in both processes. Not reentrant.
    """

    def __init__(self):
        self._changed, self._inside, self._forking = threading.Condition(), 0, False
        os.register_at_fork(
            before=self._empty, after_in_parent=self._go_on, after_in_child=self._go_on
        )

    def __enter__(self) -> None:
        with self._changed:
            while self._forking:
                self._changed.wait()
            if not self._inside:
                self._limit = _blas().limit(limits=1)
            self._inside += 1

    def __exit__(self, *_) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()
                self._changed.notify_all()

    def _empty(self) -> None:
        self._changed.acquire()
        self._forking = True
        self._changed.wait_for(lambda: not self._inside)

    def _go_on(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


ALONE = _Alone()


@ALONE
def turn_of(vectors: np.ndarray) -> tuple[np.ndarray | None, list[tuple[int, int]]]:
    """Return (rotation, [(codes, dimensions of each)]); (None, []) when it does not pay.

    vectors: float32 [N, D]. The rotation is described in `turned`.
    """
    sample = vectors[:: -(-len(vectors) // SAMPLE)]
    around = sample - sample.mean(axis=0)
    variances, directions = np.linalg.eigh(
        np.asarray(around.T @ around / max(1, len(around) - 1), np.float64)
    )
    variances, directions = variances[::-1], directions[:, ::-1]
    pays = lambda widths: sum(codes for codes, _ in widths) <= WORTH * vectors.shape[1] / 2
    if len(variances) > WHOLE:
        widths = widths_for(
            np.append(
                variances[:REFLECTIONS],
                np.full(len(variances) - REFLECTIONS, variances[REFLECTIONS:].mean()),
            )
        )
        if pays(widths):
            return reflections(directions[:, :REFLECTIONS]), widths
    widths = widths_for(variances)
    return (np.ascontiguousarray(directions, np.float32), widths) if pays(widths) else (None, [])


def reflections(directions: np.ndarray) -> np.ndarray:
    """Return V and T V, float32 [2, R, D], of a rotation to the given directions [D, R].

    The rotation is I - V' T V. It maps to the orthonormal directions up to their signs.
    """
    raw, scale = np.linalg.qr(directions, mode="raw")
    onto = np.triu(raw, 1) + np.eye(*raw.shape)
    inner = np.zeros((len(scale), len(scale)))
    for i, by in enumerate(scale):
        inner[i, i], inner[:i, i] = by, -by * (inner[:i, :i] @ (onto[:i] @ onto[i]))
    return np.stack([onto, inner @ onto]).astype(np.float32)


def widths_for(variances: np.ndarray) -> list[tuple[int, int]]:
    """variances [D], descending -> [(codes, dimensions of each)], D dimensions in total."""
    share, at, widths = variances / max(variances.mean(), 1e-30), 0, []
    for width, least in (*WIDTHS, (WIDEST, -np.inf)):
        codes = (int((share > least).sum()) - at) // width
        if codes > 0:
            widths.append((codes, width))
            at += codes * width
    return [*widths, (1, len(share) - at)] if at < len(share) else widths


class Turned:
    """A ScaNN searcher of rotated rows that takes unrotated rows and queries."""

    def __init__(self, searcher, turn: np.ndarray):
        self._searcher = searcher
        # Column-major halves the time of one query.
        self._turn = np.asfortranarray(turn) if turn.ndim == 2 else turn

    def __getattr__(self, name: str):
        return getattr(self._searcher, name)

    def search(self, query: np.ndarray, *how):
        return self._searcher.search(turned(query, self._turn), *how)

    def search_batched(self, queries: np.ndarray, *how):
        return self._searcher.search_batched(turned(queries, self._turn), *how)

    def upsert(self, where: list, vectors: np.ndarray, *how):
        return self._searcher.upsert(where, turned(vectors, self._turn), *how)

    def serialize(self, folder: str, *how) -> None:
        self._searcher.serialize(folder, *how)
        np.save(Path(folder) / FILE, self._turn, allow_pickle=False)


def turned(rows: np.ndarray, turn: np.ndarray, back: bool = False) -> np.ndarray:
    """Rotate rows [N, D] or [D] by a matrix [D, D] or reflections [2, R, D].

    back: apply the inverse.
    """
    if turn.ndim == 2:
        return product(rows, turn.T if back else turn)
    onto, off = turn[::-1] if back else turn
    return rows - product(product(rows, onto.T), off)


def product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return rows [N, D] or [D] @ matrix, computed on this thread alone."""
    if rows.ndim == 1:  # without BLAS: faster than setting its number of threads
        return (
            np.vecdot(matrix.T, rows)
            if matrix.T.flags.c_contiguous
            else np.einsum("d,de->e", rows, matrix)
        )
    with ALONE:
        return rows @ matrix


def saved_turn(folder: Path) -> np.ndarray | None:
    path = folder / FILE
    return np.load(path, allow_pickle=False) if path.exists() else None


def saved_rows(folder: Path, which: slice | list[int] = slice(None)) -> np.ndarray:
    """Return rows of a saved searcher, rotated back."""
    rows, turn = (
        np.load(folder / "dataset.npy", mmap_mode="r", allow_pickle=False)[which],
        saved_turn(folder),
    )
    return np.array(rows) if turn is None else turned(rows, turn, back=True)
