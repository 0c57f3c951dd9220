"""How widely an approximate index has to search: chosen by size, measured on its own vectors, or given.

Partitions are searched best first: those whose centres score at most `reach` less than the best one's, and at most so many. A query in
the middle of a crowd needs few, one between crowds many, and the scores of the centres tell them apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.turning import product

KINDS = ("brute", "quantised", "partitioned")
BRUTE_FORCE_BELOW = 20_000  # rows (ScaNN docs/algorithms.md); above: quantised scores, the best of them scored again exactly
PARTITIONS_FROM = 100_000  # rows; above: 2 sqrt(n) partitions, measured 11 and 24 % faster than sqrt(n), of which the nearest are searched
LEAST_ROWS = 256  # ScaNN trains neither quantiser nor partitions on a handful
MEASURED_AT = (10, 100)  # k; between and beyond them the settings follow a power law
PROBES = 256  # rows on which settings are measured, of the index's own, of those put in since and of those asked for
MARGIN = 0.4  # of the recall that may be missing: queries are farther from the rows than the rows are from each other
FAR = 4.0  # more than centres of unit vectors differ by
REACHES = np.geomspace(FAR / 400, FAR, 64).tolist()
BEYOND = (
    1.2,
    math.inf,
)  # times the least reach that suffices without a limit on partitions; a limit can then be low, or is all there is
ROWS_A_CANDIDATE = 30  # quantised rows that can be scanned in the time of scoring one exactly (measured at 128 dimensions)


@dataclass(frozen=True)
class Tuning:
    """What an index chooses for itself, unless it is given here. "" and 0 leave the choice to the index.

    kind: "brute" (exact), "quantised" or "partitioned"; leaves: partitions; leaves_searched and reorder: partitions searched and
    candidates scored exactly, for any k; reach: how much less than the best a partition's centre may score to be searched (without limit
    where leaves_searched alone is given); recall: what is aimed at, of the 10 nearest. Raises RetrievalError for other values.
    """

    kind: str = ""
    leaves: int = 0
    leaves_searched: int = 0
    reorder: int = 0
    recall: float = 0.95
    reach: float = 0.0

    def __post_init__(self):
        if self.kind not in ("", *KINDS):
            raise RetrievalError(
                f"kind={self.kind!r}: expected one of {', '.join(KINDS)}, or '' to choose by size"
            )
        for name in ("leaves", "leaves_searched", "reorder"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise RetrievalError(
                    f"{name}={value!r}: expected a whole number, 0 to choose by measurement"
                )
        for name in ("reach", "recall"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RetrievalError(f"{name}={value!r}: expected a number")
        if not 0 <= self.reach < math.inf:
            raise RetrievalError(
                f"reach={self.reach!r}: expected a difference of cosines, 0 to choose by measurement"
            )
        if not 0 < self.recall <= 1:
            raise RetrievalError(
                f"recall={self.recall!r}: expected a share of the nearest, above 0 and at most 1"
            )


def kind_for(size: int, tuning: Tuning) -> str:
    if size < LEAST_ROWS:
        return "brute"
    return tuning.kind or (
        "brute"
        if size < BRUTE_FORCE_BELOW
        else "quantised"
        if size < PARTITIONS_FROM
        else "partitioned"
    )


@dataclass(frozen=True)
class Setting:
    """What reaches `recall` for the k nearest: the most partitions searched, candidates scored exactly, and how far partitions may be."""

    k: int
    leaves: int
    reorder: int
    recall: float
    reach: float = FAR


class Width(NamedTuple):
    """How widely one search goes: at most so many partitions, candidates scored exactly, how far partitions may be."""

    leaves: int
    reorder: int
    reach: float = FAR


class Recent:
    """The latest few of the rows that passed by."""

    def __init__(self, dim: int):
        self._rows, self.count = np.zeros((PROBES, dim), np.float32), 0

    def add(self, rows: np.ndarray) -> None:
        if len(rows) == 1:
            self._rows[self.count % PROBES] = rows[0]
            self.count += 1
            return
        last = rows[-PROBES:]
        self._rows[(self.count + np.arange(len(last))) % PROBES] = last
        self.count += len(rows)

    def rows(self) -> np.ndarray:
        return self._rows[: self.count].copy()


def recall_of(scores: np.ndarray, last: np.ndarray, own: int = 1) -> float:
    """The share of the k nearest that was found, beyond the `own` nearest ones: 1 where a probe is itself among the rows.

    scores [P, k + own]: what was found; last [P]: the exact score of the (k + own)-th.
    By scores, not ids, so that a copy of a vector is as good as the vector (as ann-benchmarks counts).
    """
    found = (scores >= last[:, None] - 1e-5).sum(axis=1)  # NaN, where ScaNN found too few, is not
    return float(np.maximum(found - own, 0).mean() / (scores.shape[1] - own))


def measured(
    scores: Callable,
    scanned: Callable,
    last: np.ndarray,
    k: int,
    leaves: int,
    size: int,
    tuning: Tuning,
    cuts: Sequence[int] = (),
) -> Setting:
    """The cheapest setting that finds `tuning.recall` of the k nearest of the probes, of every kind of them.

    scores(k+1, leaves, reorder, reach) -> [P, k+1] searches the probes; scanned(leaves, reach): the quantised rows that
    this reads for one; last [P]: the probes' exact k+1-th best score; cuts: where another kind begins.
    """
    target = tuning.recall + MARGIN * (1 - tuning.recall)

    def recall(leaves: int, reorder: int, reach: float) -> float:
        found = scores(k + 1, leaves, max(reorder, k + 1), reach)
        return min(
            recall_of(*kind)
            for kind in zip(np.split(found, cuts), np.split(last, cuts), strict=True)
        )

    all_leaves = (
        [min(leaves, tuning.leaves_searched)]
        if tuning.leaves_searched
        else _series(1, leaves, 1.25)
    )
    all_reorders = [min(size, tuning.reorder)] if tuning.reorder else _series(k + 1, size, 1.3)
    ample = next(
        (i for i, reorder in enumerate(all_reorders) if reorder > 20 * k), len(all_reorders) - 1
    )
    fewest = lambda reach: _first(
        lambda i: recall(all_leaves[i], all_reorders[ample], reach) >= target, len(all_leaves)
    )
    reaches = [float(tuning.reach or FAR)]
    if not tuning.reach and not tuning.leaves_searched and leaves > 1:
        least = REACHES[
            _first(
                lambda i: recall(leaves, all_reorders[ample], REACHES[i]) >= target, len(REACHES)
            )
        ]
        reaches = [min(FAR, least * beyond) for beyond in BEYOND]
    start, reach = min(
        ((fewest(reach), reach) for reach in reaches),
        key=lambda way: scanned(all_leaves[way[0]], way[1]),
    )
    found = []
    for leaf in all_leaves[start : start + 5]:
        at = _first(
            lambda i, leaf=leaf: recall(leaf, all_reorders[i], reach) >= target, len(all_reorders)
        )
        reached = recall(leaf, all_reorders[at], reach)
        cost = scanned(leaf, reach) + ROWS_A_CANDIDATE * all_reorders[at]
        found.append(
            (
                -min(reached, target),
                cost,
                Setting(k, leaf, all_reorders[at], round(reached, 4), reach),
            )
        )
    return min(found, key=lambda f: f[:2])[2]


def setting_for(
    settings: list[Setting], k: int, leaves: int, size: int, tuning: Tuning, widened: float = 1.0
) -> Width:
    """What k takes, from the settings measured at some k, ascending, `widened` times; never fewer candidates than k."""
    low, high = settings[0], settings[-1]
    power = math.log(max(k, low.k) / low.k) / math.log(high.k / low.k) if high.k > low.k else 0.0
    leaf = math.ceil(widened * low.leaves * (high.leaves / low.leaves) ** power)
    reorder = math.ceil(widened * low.reorder * (high.reorder / low.reorder) ** power)
    if k > high.k:  # the far neighbours have the least between them
        reorder = max(reorder, 4 * k)
    reach = (
        FAR if tuning.leaves_searched else widened * low.reach * (high.reach / low.reach) ** power
    )
    leaf, reorder = tuning.leaves_searched or leaf, max(tuning.reorder or reorder, k)
    return Width(min(leaves, leaf), min(size, reorder), min(FAR, float(tuning.reach or reach)))


def farther_half(probes: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of probes [P, dim] that easy and hard ones are mixed in, with their best scores [P, k], those whose nearest vectors are farthest."""
    far = np.argsort(best[:, min(9, best.shape[1] - 1)])[: -(-len(probes) // 2)]
    return probes[far], best[far]


def best_scores(vectors: np.ndarray, probes: np.ndarray, k: int) -> np.ndarray:
    """The min(k, N) best scores [P, k] of the probes among all vectors [N, dim], exactly, descending; a slice of the vectors at a time."""
    best = np.zeros((len(probes), 0), np.float32)
    for start in range(0, len(vectors), 20_000):
        best = np.concatenate([best, product(probes, vectors[start : start + 20_000].T)], axis=1)
        if best.shape[1] > k:
            best = np.partition(best, -k, axis=1)[:, -k:]
    return -np.sort(-best, axis=1)


def _series(first: int, last: int, factor: float) -> list[int]:
    """first, and every next one `factor` larger or one more, up to last."""
    series = [min(first, last)]
    while series[-1] < last:
        series.append(min(last, max(series[-1] + 1, int(series[-1] * factor))))
    return series


def _first(true: Callable[[int], bool], count: int) -> int:
    """The first of 0 ... count-1 from which on it is true, or the last one."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if true(middle) else (middle + 1, high)
    return low
