"""Metrics of a whole corpus: BLEU and chrF by sacreBLEU (Post 2018).

Such a metric is not a mean over answers. It is a function of sums: each answer has statistics, such
as its numbers of matching n-grams, and the score is computed from their sums over all answers.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

METRICS = {"bleu": "BLEU", "chrf": "CHRF"}  # name -> class of sacrebleu.metrics


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of answers. counts: float [N, K]. figure: sums [K] -> score in [0, 1].

    signature: sacreBLEU's, which names the version and options.
    """

    counts: np.ndarray
    figure: Callable[[np.ndarray], float]
    signature: str

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, rows) -> "Statistics":
        return dataclasses.replace(self, counts=self.counts[rows])

    def mean(self) -> float:
        """Score of all answers together."""
        return self.figure(self.counts.sum(axis=0))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Metric of a whole corpus, one of METRICS. Raises ValueError without the package sacrebleu."""

    name: str

    def __post_init__(self):
        self._metric()

    def of(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
        """Statistics of answers, each with its references. Raises ValueError for none."""
        for answer, texts in zip(answers, references, strict=True):
            if not texts:
                raise ValueError(f"the answer {answer!r} has no reference to be scored against")
        most = max(map(len, references))
        streams = [
            [texts[i] if i < len(texts) else None for texts in references] for i in range(most)
        ]
        metric = self._metric()
        counts = np.array(metric._extract_corpus_statistics(list(answers), streams), np.float64)
        figure = functools.partial(_figure, metric)
        return Statistics(counts, figure, str(metric.get_signature()))

    def _metric(self) -> Any:
        try:
            metrics = importlib.import_module("sacrebleu.metrics")
        except ImportError as error:
            raise ValueError(
                f"the metric {self.name!r} needs the package sacrebleu: pip install sacrebleu, or "
                f"leave {' and '.join(METRICS)} out"
            ) from error
        return getattr(metrics, METRICS[self.name])()


def _figure(metric: Any, sums: np.ndarray) -> float:
    return metric._compute_score_from_stats(sums.tolist()).score / 100
