"""Scores of answered questions apart: by a number of theirs, and by the threshold of a condition.

Rows are those of `retrieval.evaluate.score`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lm.evaluation.accuracy import wilson
from lm.evaluation.scores import bootstrap, markdown
from retrieval.errors import RetrievalError

BOOKS = "closed", "open"


def numbers(rows: Sequence[Mapping], field: str) -> np.ndarray:
    """That field of every row, float64 [N]. Raises RetrievalError if one is no number."""
    for row in rows:
        value = row.get(field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise RetrievalError(
                f"--by={field}: the question {row['question'][:60]!r} has {value!r}; expected a "
                "number, such as its popularity"
            )
    return np.array([row[field] for row in rows], np.float64)


def by(rows: Sequence[Mapping], field: str) -> list[dict]:
    """Scores of the third with low, middle and high numbers; equal numbers stay together.

    Exact matches have Wilson's 95 % interval, F1 that of the bootstrap.
    """
    values, found = numbers(rows, field), []
    third = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)
    for number in sorted({*third.tolist()}):
        inside = third == number
        part = [row for row, own in zip(rows, inside, strict=True) if own]
        low, high = values[inside].min(), values[inside].max()
        told: dict = {"field": field, "from": float(low), "to": float(high), "questions": len(part)}
        for book in BOOKS:
            for how in ("exact", "correct"):
                right = sum(row[f"{book}_{how}"] for row in part)
                told[f"{book}_{how}"] = [right / len(part), *wilson(right, len(part))]
            f1 = np.array([row[f"{book}_f1"] for row in part])
            told[f"{book}_f1"] = [float(f1.mean()), *bootstrap(f1)]
        found.append(told)
    return found


def sweep(rows: Sequence[Mapping], below: float) -> list[dict]:
    """Scores of a condition with other thresholds, of which `below` is the largest.

    Only questions with a measure below it were asked with passages, so that no larger one is known.
    The thresholds are the deciles of the measures; the first reads no passages.
    """
    measures = np.array([row["measure"] for row in rows])
    deciles = np.quantile(measures, np.linspace(0, 1, 11)[:-1])
    found = []
    for threshold in dict.fromkeys([*deciles[deciles < below].tolist(), float(below)]):
        read = measures < threshold
        told = {"below": threshold, "reads": float(read.mean())}
        for how in ("correct", "exact", "f1"):
            closed, opened = (np.array([row[f"{book}_{how}"] for row in rows]) for book in BOOKS)
            told[how] = float(np.where(read, opened, closed).mean())
        found.append(told)
    return found


def by_table(found: Sequence[Mapping]) -> str:
    """Markdown of `by`."""
    heads = [f"{book}-book {how}" for book in BOOKS for how in ("exact", "F1", "right")]
    lines = [[found[0]["field"], "questions", *heads]]
    for told in found:
        cells = [f"{told['from']:g} to {told['to']:g}", str(told["questions"])]
        for book in BOOKS:
            for how, form in (("exact", ".1%"), ("f1", ".3f"), ("correct", ".1%")):
                mean, low, high = (format(x, form) for x in told[f"{book}_{how}"])
                cells.append(f"{mean} ({low} to {high})")
        lines.append(cells)
    return markdown(lines)


def sweep_table(found: Sequence[Mapping]) -> str:
    """Markdown of `sweep`, and the threshold with most right answers."""
    lines = [["below", "reads", "right", "exact", "F1"]]
    lines += [
        [
            f"{told['below']:.3g}",
            *(f"{told[how]:.1%}" for how in ("reads", "correct", "exact")),
            f"{told['f1']:.3f}",
        ]
        for told in found
    ]
    best = max(found, key=lambda told: told["correct"])  # the first of equals reads least
    return f"{markdown(lines)}\nmost are right with below={best['below']:.3g}"
