"""Scores of thirds of the questions and of other thresholds, against sums by hand."""

import itertools

import numpy as np
import pytest

from lm.evaluation.accuracy import wilson
from retrieval.errors import RetrievalError
from retrieval.reading import breakdown


def row(closed, opened, **more):
    return {
        "question": "Where?",
        **{f"closed_{how}": closed for how in ("exact", "correct", "f1")},
        **{f"open_{how}": opened for how in ("exact", "correct", "f1")},
        **more,
    }


def test_a_third_holds_other_questions_or_equal_numbers_are_apart():
    rows = [row(n == 5, n < 5, n=n // 2) for n in range(12)]
    low, middle, high = breakdown.by(rows, "n")
    assert [(told["from"], told["to"], told["questions"]) for told in (low, middle, high)] == [
        (0, 1, 4),
        (2, 3, 4),
        (4, 5, 4),
    ]
    assert low["open_exact"] == [1, *wilson(4, 4)] and middle["open_exact"] == [0.25, *wilson(1, 4)]
    assert middle["closed_f1"][0] == 0.25 and high["closed_f1"] == [0, 0, 0]
    assert [told["questions"] for told in breakdown.by([row(0, 1, n=3)] * 5, "n")] == [5]
    table = breakdown.by_table([low, middle, high]).splitlines()
    assert table[0].split(" | ")[0] == "| n     " and "25.0% (4.6% to 69.9%)" in table[3]


@pytest.mark.parametrize("value", [None, "3", True, float("nan")])
def test_a_number_that_is_none_is_named(value):
    with pytest.raises(RetrievalError, match=r"--by=n: the question 'Where\?' has .*expected a n"):
        breakdown.numbers([row(0, 1, n=1), row(0, 1, n=value)], "n")


def test_a_threshold_has_another_score_than_a_run_with_it():
    rng = np.random.default_rng(0)
    rows = [
        row(bool(rng.integers(2)), bool(rng.integers(2)), measure=float(rng.random()))
        for _ in range(40)
    ]
    found = breakdown.sweep(rows, 0.7)
    assert found[0]["reads"] == 0 and found[-1]["below"] == 0.7
    assert all(a["below"] < b["below"] for a, b in itertools.pairwise(found))
    for told in found:
        read = [r["measure"] < told["below"] for r in rows]
        right = [
            r["open_correct" if o else "closed_correct"] for r, o in zip(rows, read, strict=True)
        ]
        assert told["reads"] == np.mean(read) and told["correct"] == np.mean(right)
    best = max(found, key=lambda told: told["correct"])
    assert f"with below={best['below']:.3g}" in breakdown.sweep_table(found)
    assert [told["reads"] for told in breakdown.sweep([row(1, 0, measure=2.0)] * 3, 2.0)] == [0]
