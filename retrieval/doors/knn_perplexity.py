"""Perplexity of text with a kNN-LM, and the share and temperature that suit it best."""

import dataclasses
import functools
import math

import numpy as np

from lm.data.packed import Packed
from lm.evaluation.perplexity import Perplexity, summarise
from retrieval.datastore.observer import Observer
from retrieval.datastore.snapshot import Snapshot
from retrieval.doors.knn import checked
from retrieval.errors import RetrievalError

SHARES = 48  # halvings of the interval of the share
TEMPERATURES = 33  # of the grid, a factor of sqrt(2) apart
REFINED = 24  # steps of golden section around the best of the grid


@dataclasses.dataclass(frozen=True)
class Scored:
    """N predictions of packed rows, with the k nearest entries of each, searched once.

    log_probs: float64 [N], of the model. distances: float32 [N, k]. hits: bool [N, k], whether an
    entry holds the token that follows. rows, places: of the predictions in the rows.
    vectors: float32 [N, D], only where they were asked for.
    """

    packed: Packed
    log_probs: np.ndarray
    distances: np.ndarray
    hits: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    vectors: np.ndarray | None = None

    def part(self, kept: np.ndarray) -> "Scored":
        """Some of the predictions. kept: bool [N]."""
        names = ("log_probs", "distances", "hits", "rows", "places")
        some = {name: getattr(self, name)[kept] for name in names}
        return Scored(
            self.packed, **some, vectors=None if self.vectors is None else self.vectors[kept]
        )

    def memory(self, temperature: float) -> np.ndarray:
        """log p_knn of the tokens that follow, float64 [N]; -inf where no entry holds them."""
        scores = -self.distances.astype(np.float64) / temperature
        held = np.where(self.hits, scores, -np.inf)
        with np.errstate(divide="ignore"):
            return _logsumexp(held) - _logsumexp(scores)

    def mixed(self, share: float | np.ndarray, temperature: float) -> np.ndarray:
        """log p of the mixture, float64 [N]. share: one, or one each [N]."""
        with np.errstate(divide="ignore"):
            return np.logaddexp(
                self.log_probs + np.log1p(-np.asarray(share, np.float64)),
                self.memory(temperature) + np.log(np.asarray(share, np.float64)),
            )

    def perplexity(self, share: float | np.ndarray = 0.0, temperature: float = 1.0) -> Perplexity:
        """Perplexity of the rows; share 0 = of the model alone."""
        losses, weights = np.zeros((2, *self.packed.tokens.shape), np.float64)
        at = self.rows, self.places
        losses[at], weights[at] = -self.mixed(share, temperature), 1.0
        seen = np.zeros(len(self.packed), bool)
        seen[self.rows] = True
        segments = np.asarray(self.packed.segments)
        if np.count_nonzero(segments[seen]) == len(self.rows):  # every token of the text
            return summarise(self.packed, losses, seen)
        return summarise(self.packed, losses, seen, weights, segments)


def score(
    observer: Observer,
    packed: Packed,
    snapshot: Snapshot,
    k: int,
    max_rows: int = 0,
    vectors: bool = False,
) -> Scored:
    """Read rows with a model and search each prediction's context vector. max_rows 0 = all.

    Raises RetrievalError, before anything is read, for k beyond the datastore.
    """
    snapshot.check(k)
    kept: list[tuple] = []
    for seen in observer.observe(packed, max_rows):
        found = snapshot.search(seen.vectors, k)
        hits = found.values == seen.targets[:, None]
        own = -seen.losses.astype(np.float64)
        kept.append((own, found.distances, hits, seen.rows, seen.places))
        kept[-1] += (seen.vectors,) if vectors else ()
    if not kept:
        raise RetrievalError("the rows have nothing to predict: give text with some tokens")
    return Scored(packed, *map(np.concatenate, zip(*kept, strict=True)))


def tuned(scored: Scored) -> tuple[float, float]:
    """The share and temperature of the least loss on these predictions.

    The log-likelihood is concave in the share, so the best share of a temperature is exact; share 0
    is among them, so the mixture is never worse than the model alone. Temperatures are those of a
    grid around the median distance, refined by golden section.
    """
    middle = float(np.median(scored.distances)) or 1.0
    grid = [middle * 2 ** ((at - TEMPERATURES // 2) / 2) for at in range(TEMPERATURES)]

    @functools.cache
    def best(temperature: float) -> tuple[float, float]:
        memory = scored.memory(temperature)
        share = _best_share(scored.log_probs, memory)
        with np.errstate(divide="ignore"):
            loss = -np.logaddexp(
                scored.log_probs + np.log1p(-share), memory + np.log(np.float64(share))
            ).mean()
        return float(loss), share

    at = min(range(len(grid)), key=lambda at: best(grid[at])[0])
    low, high = np.log(grid[max(at - 1, 0)]), np.log(grid[min(at + 1, len(grid) - 1)])
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(REFINED):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if best(math.exp(left))[0] <= best(math.exp(right))[0]:
            high = right
        else:
            low = left
    found = min([grid[at], math.exp((low + high) / 2)], key=lambda t: best(t)[0])
    share = best(found)[1]
    checked(1, share, found)
    return share, found


def _best_share(own: np.ndarray, memory: np.ndarray) -> float:
    """Share in [0, 1] that maximises mean log((1 - s) exp(own) + s exp(memory)), by bisection."""
    most = np.maximum(own, memory)
    with np.errstate(under="ignore"):
        p, q = np.exp(own - most), np.exp(memory - most)
    slope = lambda share: float(np.mean((q - p) / np.maximum((1 - share) * p + share * q, 1e-300)))
    low, high = 0.0, 1.0 - 2**-20
    if slope(low) <= 0:
        return 0.0
    for _ in range(SHARES):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


def _logsumexp(x: np.ndarray) -> np.ndarray:
    most = x.max(axis=1)
    safe = np.where(np.isfinite(most), most, 0.0)
    return np.log(np.exp(x - safe[:, None]).sum(axis=1)) + safe
