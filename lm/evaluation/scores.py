"""Scores of answers against their references, and means with a confidence interval.

Two normalisations are in use and give different scores, so they are named apart. That of
Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705) keeps articles; that of SQuAD
(Rajpurkar et al. 2016, section 6.1) drops them. The score of an answer is the best over its
references, between 0 and 1; tables show 100 times the mean over answers. Metrics of a whole corpus
(lm/evaluation/corpus.py) are no means.
"""

import collections
import dataclasses
import functools
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.evaluation import words
from lm.evaluation.corpus import METRICS as OF_CORPUS
from lm.evaluation.corpus import Corpus, Statistics
from lm.evaluation.words import Tokenize

byte_pairs = words.byte_pairs

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_instructions(text: str) -> str:
    """Lower-case, without ASCII punctuation, with single spaces: "The  cat." -> "the cat"."""
    return " ".join(text.lower().translate(PUNCTUATION).split())


def normalise_squad(text: str) -> str:
    """Apply `normalise_instructions` and drop the words a, an and the: "The  cat." -> "cat"."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1.0 if both are equal under the normalisation of Super-NaturalInstructions."""
    return float(normalise_instructions(answer) == normalise_instructions(reference))


def squad_exact_match(answer: str, reference: str) -> float:
    """1.0 if both are equal under the normalisation of SQuAD."""
    return float(normalise_squad(answer) == normalise_squad(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, normalised as in SQuAD.

    1.0 if neither has words (SQuAD 2.0).
    """
    return _overlap(normalise_squad(answer).split(), normalise_squad(reference).split())


def _overlap(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    return (
        2
        * (collections.Counter(ours) & collections.Counter(theirs)).total()
        / (len(ours) + len(theirs))
    )


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of Porter stems, by rouge_score."""
    return _scorer().score(reference, answer)["rougeL"].fmeasure


def rouge_1(answer: str, reference: str) -> float:
    """ROUGE-1: F1 of the common Porter stems, by rouge_score."""
    return _scorer().score(reference, answer)["rouge1"].fmeasure


@functools.cache
def _scorer(tokenize: Tokenize | None = None):
    try:
        from rouge_score import rouge_scorer, tokenizers
    except ImportError as error:
        raise ValueError(
            "ROUGE needs the rouge-score package: pip install rouge-score, "
            "or leave rouge_l and rouge_1 out"
        ) from error
    if tokenize is None:
        return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)

    class Given(tokenizers.Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return tokenize(text)

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], tokenizer=Given())


def rouge_of(tokenize: Tokenize) -> dict[str, Callable[[str, str], float]]:
    """Build rouge_l and rouge_1 on the words of `tokenize`, not stemmed, for other languages."""

    def scored(name: str, answer: str, reference: str) -> float:
        return _scorer(tokenize).score(reference, answer)[name].fmeasure

    return {
        "rouge_l": functools.partial(scored, "rougeL"),
        "rouge_1": functools.partial(scored, "rouge1"),
    }


def unicode_exact_match(answer: str, reference: str) -> float:
    """1.0 if both have the same words in any script, ignoring punctuation, width and case."""
    return float(words.without_punctuation(answer) == words.without_punctuation(reference))


def unicode_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words of any script, including articles.

    1.0 if neither has words.
    """
    return _overlap(words.without_punctuation(answer), words.without_punctuation(reference))


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "rouge_l": rouge_l,
    "rouge_1": rouge_1,
    "squad_exact_match": squad_exact_match,
    "unicode_exact_match": unicode_exact_match,
    "unicode_f1": unicode_f1,
}


Metric = Callable[[str, str], float] | Corpus
Values = np.ndarray | Statistics  # of a metric, for each answer


def chosen(names: str | Sequence[str], tokenize: Tokenize | None = None) -> dict[str, Metric]:
    """Select metrics by name, in this order; `tokenize` makes the words of ROUGE.

    Raises ValueError for an unknown name, or without the package that a metric needs.
    """
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    known = {**METRICS, **(rouge_of(tokenize) if tokenize else {})}
    for name in names:
        if name not in known and name not in OF_CORPUS:
            raise ValueError(
                f"metric {name!r} is unknown; one of {', '.join((*known, *OF_CORPUS))}"
            )
    return {name: Corpus(name) if name in OF_CORPUS else known[name] for name in names}


def best(metric: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    """Best score of an answer over its references. Raises ValueError if there are none."""
    if not references:
        raise ValueError(f"the answer {answer!r} has no reference to be scored against")
    return max(metric(answer, reference) for reference in references)


def score(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Mapping[str, Metric],
) -> dict[str, Any]:
    """Score every answer: metric name -> float [N] in [0, 1], or Statistics of a corpus metric.

    Raises ValueError for an answer without references.
    """
    if len(answers) != len(references):
        raise ValueError(
            f"{len(answers)} answers for {len(references)} sets of references; they must be equal"
        )
    pairs = list(zip(answers, references, strict=True))
    return {
        name: metric.of(answers, references)
        if isinstance(metric, Corpus)
        else np.array([best(metric, *pair) for pair in pairs])
        for name, metric in metrics.items()
    }


def signatures(found: Mapping[str, Values]) -> dict[str, str]:
    """Metric -> sacreBLEU's signature, of the corpus metrics."""
    return {
        name: values.signature for name, values in found.items() if isinstance(values, Statistics)
    }


@dataclasses.dataclass(frozen=True)
class Scored:
    """One line of a table.

    scores: metric -> 100 times the mean, or the score of the corpus. intervals: metric -> its 95 %
    interval.
    """

    name: str
    answers: int
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def table(
    scores: Mapping[str, Values],
    groups: Sequence[str] | None = None,
    *,
    clusters: Sequence[str] | None = None,
) -> list[Scored]:
    """Make one line for all answers, then one per group (a task or a category), sorted by name.

    The overall mean is over answers, as in Super-NaturalInstructions, so tasks count by their size.
    clusters: cluster of each answer for resampling, see `bootstrap`; answers to one task are not
    independent.
    """
    lines = [_line("all", scores, np.arange(len(next(iter(scores.values())))), clusters)]
    if groups is not None:
        lines += [
            _line(name, scores, np.flatnonzero(np.asarray(groups) == name), clusters)
            for name in sorted(set(groups))
        ]
    return lines


def _line(
    name: str, scores: Mapping[str, Values], rows: np.ndarray, clusters: Sequence[str] | None
) -> Scored:
    within = None if clusters is None else [clusters[row] for row in rows]
    within = None if within is None or len(set(within)) < 2 else within
    means = {metric: 100 * float(values[rows].mean()) for metric, values in scores.items()}
    intervals = {}
    for metric, values in scores.items():
        low, high = bootstrap(values[rows], within)
        intervals[metric] = (100 * low, 100 * high)
    return Scored(name, len(rows), means, intervals)


def bootstrap(
    values: Values,
    clusters: Sequence[str] | None = None,
    *,
    share: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap percentile interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Deterministic in `seed`. values: float [N], or Statistics, for the score of a corpus (Koehn
    2004). clusters: the cluster of each value; whole clusters are then resampled (Field and Welsh
    2007). Fewer than two values or clusters have no interval: (nan, nan).
    """
    numbers = (
        np.arange(len(values))
        if clusters is None
        else np.unique(np.asarray(clusters), return_inverse=True)[1]
    )
    if len(values) < 2 or numbers.max() < 1:
        return float("nan"), float("nan")
    if isinstance(values, Statistics):
        counts, figure = values.counts, values.figure
    else:
        one = np.asarray(values, np.float64)
        counts, figure = np.stack([one, np.ones_like(one)], axis=1), _mean
    n = int(numbers.max()) + 1
    sums = np.zeros((n, counts.shape[1]))
    np.add.at(sums, numbers, counts)
    rng, means = np.random.default_rng(seed), np.empty(resamples)
    for at in range(resamples):  # one at a time, to limit memory
        drawn = np.bincount(rng.integers(n, size=n), minlength=n)
        means[at] = figure(drawn @ sums)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _mean(sums: np.ndarray) -> float:
    return sums[0] / sums[1]


def copy_input(inputs: Sequence[str]) -> list[str]:
    """Baseline that answers with its input."""
    return list(inputs)


def copy_demonstration(demonstrations: Sequence[Sequence[str]], seed: int = 0) -> list[str]:
    """Baseline that answers with the output of a random demonstration; '' if there is none."""
    rng = np.random.default_rng(seed)
    return [
        answers[int(rng.integers(len(answers)))] if answers else "" for answers in demonstrations
    ]


def numbers(line: Scored) -> dict:
    """Form of a line for JSON; an interval that does not exist is [None, None]."""
    intervals = {
        name: [None if np.isnan(x) else x for x in interval]
        for name, interval in line.intervals.items()
    }
    return {"answers": line.answers, "scores": line.scores, "intervals": intervals}


def formatted(lines: Sequence[Scored]) -> str:
    """Format a table as Markdown: means, with the interval in brackets."""
    metrics = list(lines[0].scores)
    rows = [["", "answers", *metrics]]
    rows += [
        [
            line.name,
            f"{line.answers:,}",
            *(cell(line.scores[m], line.intervals[m]) if m in line.scores else "" for m in metrics),
        ]
        for line in lines
    ]
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format cells as a Markdown table, whose header is the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text = [
        "| " + " | ".join(part.ljust(width) for part, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join(
        [text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]]
    )


def cell(mean: float, interval: tuple[float, float]) -> str:
    """Format a mean, with its interval in brackets if there is one."""
    return (
        f"{mean:.1f}"
        if np.isnan(interval[0])
        else f"{mean:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
    )
