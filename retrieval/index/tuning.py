"""Search settings of an approximate index: given, chosen by size, or measured on its vectors.

Partitions are searched best first, up to a maximum number, if their centres score at most `reach`
less than the best centre. A query in the middle of a cluster needs few partitions and one between
clusters needs many; the scores of the centres tell them apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.index.rotation import product

KINDS = ("brute", "quantised", "partitioned")
# Rows (ScaNN docs/algorithms.md); above, quantised scores, the best of which are rescored exactly.
BRUTE_FORCE_BELOW = 20_000
# Rows; above, 2 sqrt(n) partitions, measured 11 and 24 % faster than sqrt(n).
PARTITIONS_FROM = 100_000
LEAST_ROWS = 256  # fewer do not suffice to train ScaNN's quantiser or partitions
MEASURED_AT = (10, 100)  # k; between and beyond them the settings follow a power law
PROBES = 256  # rows of each kind that settings are measured on: trained, new and queries
# Share of the permitted recall loss kept in reserve: queries are farther from the rows than the
# rows are from each other.
MARGIN = 0.4
FAR = 4.0  # more than the scores of centres of unit vectors can differ by
REACHES = np.geomspace(FAR / 400, FAR, 64).tolist()
# Multiples to try of the least reach that suffices without a limit on partitions.
BEYOND = (1.2, math.inf)
ROWS_A_CANDIDATE = 30  # quantised rows scanned in the time of one exact score (128 dimensions)


@dataclass(frozen=True)
class Tuning:
    """Settings of an index; "" and 0 leave the choice to the index.

    kind: "brute" (exact), "quantised" or "partitioned".
    leaves: number of partitions.
    leaves_searched, reorder: partitions searched and candidates scored exactly, for any k.
    reach: how much less than the best a searched partition's centre may score; unlimited where
    leaves_searched alone is given.
    recall: the target, of the 10 nearest.

    Raises RetrievalError for other values.
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
                f"reach={self.reach!r}: expected a difference of cosines, 0 to choose by "
                "measurement"
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
    """Search settings that reach `recall` for the k nearest.

    leaves: most partitions searched. reorder: candidates scored exactly. reach: see the module.
    """

    k: int
    leaves: int
    reorder: int
    recall: float
    reach: float = FAR


class Width(NamedTuple):
    """How widely one search goes; fields as in `Setting`."""

    leaves: int
    reorder: int
    reach: float = FAR


class Recent:
    """A ring buffer of the latest PROBES rows."""

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
    """Return the fraction of the k nearest that was found, not counting the `own` nearest.

    own: 1 where a probe is itself among the rows. scores [P, k + own]: what was found. last [P]:
    the exact score of the (k + own)-th. Scores are compared, not ids, so a copy of a vector is as
    good as the vector (as in ann-benchmarks).
    """
    found = (scores >= last[:, None] - 1e-5).sum(axis=1)  # NaN (too few found) compares false
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
    """Return the cheapest setting that reaches `tuning.recall` for every kind of probe.

    scores(k+1, leaves, reorder, reach) -> [P, k+1]: searches the probes.
    scanned(leaves, reach): quantised rows read per probe.
    last [P]: the exact (k+1)-th best score of each probe.
    cuts: where the next kind of probe begins.
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
    """Interpolate the measured settings (ascending in k) for k, scaled by `widened`.

    There are never fewer candidates than k.
    """
    low, high = settings[0], settings[-1]
    power = math.log(max(k, low.k) / low.k) / math.log(high.k / low.k) if high.k > low.k else 0.0
    leaf = math.ceil(widened * low.leaves * (high.leaves / low.leaves) ** power)
    reorder = math.ceil(widened * low.reorder * (high.reorder / low.reorder) ** power)
    if k > high.k:  # scores of far neighbours differ the least
        reorder = max(reorder, 4 * k)
    reach = (
        FAR if tuning.leaves_searched else widened * low.reach * (high.reach / low.reach) ** power
    )
    leaf, reorder = tuning.leaves_searched or leaf, max(tuning.reorder or reorder, k)
    return Width(min(leaves, leaf), min(size, reorder), min(FAR, float(tuning.reach or reach)))


def farther_half(probes: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the half of probes [P, dim] whose nearest vectors are farthest, with their scores.

    best [P, k]: best scores. Easy probes would hide the recall of hard ones.
    """
    far = np.argsort(best[:, min(9, best.shape[1] - 1)])[: -(-len(probes) // 2)]
    return probes[far], best[far]


def best_scores(vectors: np.ndarray, probes: np.ndarray, k: int) -> np.ndarray:
    """Return the exact min(k, N) best scores [P, k] of the probes, descending.

    vectors [N, dim] are processed a slice at a time.
    """
    best = np.zeros((len(probes), 0), np.float32)
    for start in range(0, len(vectors), 20_000):
        best = np.concatenate([best, product(probes, vectors[start : start + 20_000].T)], axis=1)
        if best.shape[1] > k:
            best = np.partition(best, -k, axis=1)[:, -k:]
    return -np.sort(-best, axis=1)


def _series(first: int, last: int, factor: float) -> list[int]:
    """Return a series from `first` to `last`, each `factor` larger or at least one more."""
    series = [min(first, last)]
    while series[-1] < last:
        series.append(min(last, max(series[-1] + 1, int(series[-1] * factor))))
    return series


def _first(true: Callable[[int], bool], count: int) -> int:
    """Return the first of 0 ... count-1 from which on `true` holds, or the last (bisection)."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if true(middle) else (middle + 1, high)
    return low
