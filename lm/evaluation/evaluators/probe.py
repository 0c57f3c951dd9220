"""Probe: an evaluator that asks a model under a condition, and gives values with intervals."""

import abc
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lm.data.read import sources
from lm.data.read.sources import DataError
from lm.evaluation import generation
from lm.evaluation.accuracy import wilson
from lm.evaluation.corpus import Statistics
from lm.evaluation.evaluators import condition
from lm.evaluation.evaluators.condition import Book
from lm.evaluation.evaluators.evaluator import Evaluator, Prepared, Result, Tools
from lm.evaluation.scores import bootstrap
from lm.models.config import ConfigError

HEADS = ("causal_lm", "seq2seq_lm")

Values = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Probe(Evaluator):
    """Base class of probes. Each value NAME has NAME_low, NAME_high (95 %) and NAME_n beside it.

    "seconds" is how long the probe took, and "bytes" the size of the memory it read.
    """

    files: str = ""
    max_examples: int = 0  # evenly spaced over all; 0 = all
    condition: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {} = closed-book

    needs: ClassVar[tuple[str, ...]] = ()  # fields of a row

    def check(self, config) -> None:
        if not self.files:
            raise ConfigError("files is not set: give paths or globs of JSONL files")
        if self.max_examples < 0:
            raise ConfigError(f"max_examples={self.max_examples}: expected 0 or more")
        condition.of(self.condition)

    def prepare(self, tools: Tools) -> Prepared:
        if (head := tools.model.config.head) not in HEADS:
            raise ConfigError(
                f"a model with head={head!r} gives no likelihood of what follows: a probe takes "
                f"{' or '.join(HEADS)}"
            )
        rows = generation.spread(self.rows(), self.max_examples)
        opened = condition.of(self.condition).prepare(tools)

        def evaluate(params: dict, step: int) -> Result:
            began = time.monotonic()
            book = opened(params)
            values, said = self.measure(book, rows)
            values |= {"seconds": time.monotonic() - began, "bytes": float(book.bytes)}
            return Result(values, said)

        return evaluate

    def rows(self) -> list[dict]:
        """The rows of the files. Raises DataError for one without a field that is needed."""
        found = []
        for file in sources.find_files(self.files):
            for row in sources.rows(file):
                value = row.value
                for field in self.needs:
                    if not isinstance(value, dict) or not value.get(field):
                        raise DataError(
                            f"{row.where}: {row.problem or f'no {field!r} in it'}; expected an "
                            f"object with {', '.join(self.needs)}"
                        )
                found.append(value)
        if not found:
            raise DataError(f"{self.files}: no rows to probe with")
        return found

    @abc.abstractmethod
    def measure(self, book: Book, rows: Sequence[dict]) -> tuple[Values, str]:
        """Values by name, and a few words."""


def share(name: str, hits: np.ndarray) -> Values:
    """Share of hits, with its Wilson interval."""
    low, high = wilson(int(np.sum(hits)), len(hits))
    return _named(name, float(np.mean(hits)), low, high, len(hits))


def mean(name: str, values: Sequence[float], clusters: Sequence[str] | None = None) -> Values:
    """Mean with its bootstrap interval; whole clusters are resampled where there are several."""
    clusters = clusters if clusters is not None and len(set(clusters)) > 1 else None
    each = np.asarray(values, np.float64)
    return _named(name, float(each.mean()), *bootstrap(each, clusters), len(each))


def ratio(name: str, above: Sequence[float], below: Sequence[float]) -> Values:
    """Sum of `above` by sum of `below`, with the bootstrap interval over examples."""
    counts = np.stack([np.asarray(above), np.asarray(below)], axis=1).astype(np.float64)
    figure = lambda sums: float(sums[0] / sums[1])
    interval = bootstrap(Statistics(counts, figure, ""))
    return _named(name, figure(counts.sum(axis=0)), *interval, len(counts))


def _named(name: str, value: float, low: float, high: float, n: int) -> Values:
    ends = {f"{name}_low": low, f"{name}_high": high}
    return (
        {name: value}
        | {k: v if np.isfinite(v) else None for k, v in ends.items()}
        | {f"{name}_n": float(n)}
    )
