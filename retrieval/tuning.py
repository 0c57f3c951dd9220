"""How widely an approximate index has to search: chosen by size, measured on its own vectors, or given."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.errors import RetrievalError

KINDS = ("brute", "quantised", "partitioned")
MEASURED_AT = (10, 100)  # k; between and beyond them the settings follow a power law
MARGIN = 0.4  # of the recall that may be missing: queries are farther from the rows than the rows are from each other
ROWS_A_CANDIDATE = 30  # quantised rows that can be scanned in the time of scoring one exactly (measured at 128 dimensions)


@dataclass(frozen=True)
class Tuning:
    """What an index chooses for itself, unless it is given here. "" and 0 leave the choice to the index.

    kind: "brute" (exact), "quantised" or "partitioned"; leaves: partitions; leaves_searched and reorder: partitions searched and
    candidates scored exactly, for any k; recall: what is aimed at, of the 10 nearest. Raises RetrievalError for other values.
    """

    kind: str = ""
    leaves: int = 0
    leaves_searched: int = 0
    reorder: int = 0
    recall: float = 0.95

    def __post_init__(self):
        if self.kind not in ("", *KINDS):
            raise RetrievalError(f"kind={self.kind!r}: expected one of {', '.join(KINDS)}, or '' to choose by size")
        for name in ("leaves", "leaves_searched", "reorder"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise RetrievalError(f"{name}={value!r}: expected a whole number, 0 to choose by measurement")
        if not 0 < self.recall <= 1:
            raise RetrievalError(f"recall={self.recall!r}: expected a share of the nearest, above 0 and at most 1")


@dataclass(frozen=True)
class Setting:
    """What reaches `recall` for the k nearest: partitions searched and candidates scored exactly."""

    k: int
    leaves: int
    reorder: int
    recall: float


def recall_of(scores: np.ndarray, last: np.ndarray) -> float:
    """The share of the k nearest beyond the nearest one, which is the probe itself. scores [P, k+1]; last [P], of the k+1-th.

    By scores, not ids, so that a copy of a vector is as good as the vector (as ann-benchmarks counts).
    """
    found = (scores >= last[:, None] - 1e-5).sum(axis=1)  # NaN, where ScaNN found too few, is not
    return float(np.maximum(found - 1, 0).mean() / (scores.shape[1] - 1))


def measured(scores: Callable, last: np.ndarray, k: int, leaves: int, size: int, tuning: Tuning, cuts: Sequence[int] = ()) -> Setting:
    """The cheapest setting that finds `tuning.recall` of the k nearest of the probes, of every kind of them.

    scores(k+1, leaves, reorder) -> [P, k+1] searches the probes; last [P]: their exact k+1-th best score; cuts: where another kind begins.
    """
    target = tuning.recall + MARGIN * (1 - tuning.recall)

    def recall(leaves: int, reorder: int) -> float:
        found = scores(k + 1, leaves, max(reorder, k + 1))
        return min(recall_of(*kind) for kind in zip(np.split(found, cuts), np.split(last, cuts), strict=True))

    all_leaves = [tuning.leaves_searched] if tuning.leaves_searched else _series(1, leaves, 1.25)
    all_reorders = [tuning.reorder] if tuning.reorder else _series(k + 1, size, 1.3)
    ample = next((i for i, reorder in enumerate(all_reorders) if reorder > 20 * k), len(all_reorders) - 1)
    fewest = _first(lambda i: recall(all_leaves[i], all_reorders[ample]) >= target, len(all_leaves))
    found = []
    for leaf in all_leaves[fewest : fewest + 5]:
        at = _first(lambda i, leaf=leaf: recall(leaf, all_reorders[i]) >= target, len(all_reorders))
        reached = recall(leaf, all_reorders[at])
        cost = size * leaf / leaves + ROWS_A_CANDIDATE * all_reorders[at]
        found.append((-min(reached, target), cost, Setting(k, leaf, all_reorders[at], round(reached, 4))))
    return min(found, key=lambda f: f[:2])[2]


def setting_for(settings: list[Setting], k: int, leaves: int, size: int, tuning: Tuning, widened: float = 1.0) -> tuple[int, int]:
    """(leaves, reorder) for k, from the settings measured at some k, ascending, `widened` times; never fewer candidates than k."""
    low, high = settings[0], settings[-1]
    power = math.log(max(k, low.k) / low.k) / math.log(high.k / low.k) if high.k > low.k else 0.0
    leaf = min(leaves, math.ceil(widened * low.leaves * (high.leaves / low.leaves) ** power))
    reorder = math.ceil(widened * low.reorder * (high.reorder / low.reorder) ** power)
    if k > high.k:  # the far neighbours have the least between them
        reorder = max(reorder, 4 * k)
    return tuning.leaves_searched or leaf, min(size, max(tuning.reorder or reorder, k))


def farther_half(vectors: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """Of probes that easy and hard ones are mixed in, those whose nearest vectors are farthest."""
    return probes[np.argsort(kth_best(vectors, probes, 10))[: -(-len(probes) // 2)]]


def kth_best(vectors: np.ndarray, probes: np.ndarray, k: int) -> np.ndarray:
    """The k-th best score [P] of the probes among all vectors [N, dim], exactly, a slice of the vectors at a time."""
    best = np.zeros((len(probes), 0), np.float32)
    for start in range(0, len(vectors), 20_000):
        best = np.concatenate([best, probes @ vectors[start : start + 20_000].T], axis=1)
        if best.shape[1] > k:
            best = np.partition(best, -k, axis=1)[:, -k:]
    return best.min(axis=1)


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
