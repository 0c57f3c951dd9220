"""Scores of labels: classes of texts or tokens, values, and answer spans."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lm.evaluation import scores
from lm.evaluation.accuracy import wilson


@dataclasses.dataclass(frozen=True)
class Classified:
    """Classification scores.

    * accuracy, interval: accuracy and its 95 % interval (Wilson 1927).
    * macro_f1: mean F1 of the classes.
    * micro_f1: F1 of all decisions together; equals accuracy with one label each and no class left
      out.
    * per_class: F1 of each class that was given or wanted.
    * matthews: correlation of given and wanted classes (Matthews 1975; for more than two Gorodkin
      2004), over all classes; 0 when one side has a single class.
    """

    answers: int
    accuracy: float
    interval: tuple[float, float]
    macro_f1: float
    micro_f1: float
    per_class: dict[int, float]
    matthews: float


def classified(given, wanted, *, without: Sequence[int] = ()) -> Classified:
    """Score classes of texts or tokens, int [N] given and wanted.

    without: classes that F1 leaves out, such as "no entity". Raises ValueError if there are none,
    or the lengths differ.
    """
    given, wanted = _equal(np.asarray(given).ravel(), np.asarray(wanted).ravel())
    hits = given == wanted
    found = {}
    right = guessed = there = 0
    for label in sorted({*given.tolist(), *wanted.tolist()} - {*without}):
        counts = np.sum(hits & (wanted == label)), np.sum(given == label), np.sum(wanted == label)
        found[label] = float(2 * counts[0] / (counts[1] + counts[2]))
        right, guessed, there = right + counts[0], guessed + counts[1], there + counts[2]
    micro = float(2 * right / (guessed + there)) if guessed + there else 0.0
    macro = float(np.mean(list(found.values()))) if found else 0.0
    return Classified(
        len(hits),
        float(hits.mean()),
        wilson(int(hits.sum()), len(hits)),
        macro,
        micro,
        found,
        _matthews(given, wanted),
    )


def _matthews(given: np.ndarray, wanted: np.ndarray) -> float:
    _, numbers = np.unique(np.concatenate([given, wanted]), return_inverse=True)
    classes = int(numbers.max()) + 1
    first, second = (
        np.bincount(side, minlength=classes).astype(np.float64) for side in np.split(numbers, 2)
    )
    n, hits = len(given), float(np.sum(given == wanted))
    size = float(np.sqrt((n * n - first @ first) * (n * n - second @ second)))
    return float(hits * n - first @ second) / size if size else 0.0


def correlated(given, wanted) -> tuple[float, float]:
    """Pearson's and Spearman's correlation of values, float [N] given and wanted.

    nan for a constant. Raises ValueError like `classified`.
    """
    given, wanted = _equal(
        np.asarray(given, np.float64).ravel(), np.asarray(wanted, np.float64).ravel()
    )
    return _pearson(given, wanted), _pearson(_ranks(given), _ranks(wanted))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def best_span(start_T, end_T, segments_T, longest: int = 30) -> tuple[int, int]:
    """Select the (first, last) token of the answer from a question-answering head's logits [T].

    It maximises the sum of logits with first <= last < first + longest, among tokens with
    segments_T > 0 (Devlin et al. 2019, section 4.2). Raises ValueError if there is no such token.
    """
    inside = np.asarray(segments_T) > 0
    if not inside.any():
        raise ValueError("there is no token that an answer could be in")
    length = len(inside)
    allowed = (
        inside[:, None]
        & inside[None]
        & np.triu(np.tril(np.ones((length, length), bool), longest - 1))
    )
    total = np.where(allowed, np.asarray(start_T)[:, None] + np.asarray(end_T)[None], -np.inf)
    first, last = divmod(int(total.argmax()), length)
    return first, last


def answered(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute SQuAD's exact_match and f1 of extracted texts, in percent.

    Each question counts the best over its references. Also unicode_exact_match and unicode_f1,
    which handle the punctuation and words of every script.
    """
    by_name = {name: scores.METRICS[name] for name in ("unicode_exact_match", "unicode_f1")}
    found = scores.score(
        texts, references, {"exact_match": scores.squad_exact_match, "f1": scores.f1, **by_name}
    )
    return {name: 100 * float(values.mean()) for name, values in found.items()}


def _equal(given: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(given) != len(wanted) or not len(given):
        raise ValueError(
            f"{len(given)} labels given for {len(wanted)} wanted; they must be equal, "
            "and more than none"
        )
    return given, wanted
