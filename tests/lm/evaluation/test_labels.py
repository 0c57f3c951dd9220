"""Label scores against values computed by hand and scipy's formulas."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from lm.evaluation import labels


def test_f1_is_not_that_of_each_class_averaged():
    found = labels.classified([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 0])
    # class 0: 1 right of 2 predicted and 2 true; 1: 1 of 1 and 2; 2: 2 of 3 and 2
    assert found.per_class == pytest.approx({0: 0.5, 1: 2 / 3, 2: 0.8})
    assert found.macro_f1 == pytest.approx((0.5 + 2 / 3 + 0.8) / 3)
    assert found.accuracy == found.micro_f1 == pytest.approx(4 / 6) and found.answers == 6
    assert found.interval[0] < found.accuracy < found.interval[1]


def test_a_class_left_out_counts_in_f1():
    found = labels.classified([0, 0, 1, 2, 0], [0, 1, 1, 0, 0], without=[0])
    # classes 1 and 2: 1 right, 2 predicted, 2 true
    assert (found.micro_f1, found.macro_f1) == pytest.approx(
        (0.5, (2 / 3 + 0) / 2)
    ) and found.accuracy == 0.6
    assert labels.classified([0], [0], without=[0]).micro_f1 == 0.0


def test_the_correlation_of_classes_is_not_that_of_matthews_formula():
    rng = np.random.default_rng(0)
    for _ in range(5):
        given, wanted = rng.integers(0, 2, (2, 40))
        tp, tn = np.sum(given & wanted), np.sum((1 - given) & (1 - wanted))
        fp, fn = np.sum(given & (1 - wanted)), np.sum((1 - given) & wanted)
        matthews = (tp * tn - fp * fn) / math.sqrt(
            float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        )
        assert labels.classified(given, wanted).matthews == pytest.approx(matthews)
        assert scipy.stats.pearsonr(given, wanted).statistic == pytest.approx(matthews)
    # Gorodkin 2004, equation 8: 4 of 6 right, two of each class given and wanted
    several = labels.classified([0, 0, 2, 2, 1, 1], [0, 1, 2, 2, 1, 0]).matthews
    assert several == pytest.approx((4 * 6 - 3 * 2 * 2) / (6 * 6 - 3 * 2 * 2)) == 0.5
    assert labels.classified([1, 1], [0, 1]).matthews == 0.0


def test_correlations_are_not_scipys():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a = rng.integers(0, 6, 30).astype(float)  # with ties
        b = a**3 + rng.normal(size=30)
        pearson, spearman = labels.correlated(a, b)
        assert pearson == pytest.approx(scipy.stats.pearsonr(a, b).statistic)
        assert spearman == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert all(math.isnan(x) for x in labels.correlated([1, 1], [1, 2]))


def test_the_span_is_not_the_best_allowed():
    rng = np.random.default_rng(0)
    for _ in range(20):
        start, end = rng.normal(size=(2, 12))
        segments = rng.integers(0, 2, 12)
        segments[3] = 1
        allowed = [
            (i, j)
            for i, j in itertools.product(range(12), repeat=2)
            if i <= j < i + 4 and segments[i] and segments[j]
        ]
        assert labels.best_span(start, end, segments, 4) == max(
            allowed, key=lambda span: start[span[0]] + end[span[1]]
        )
    with pytest.raises(ValueError, match="no token"):
        labels.best_span([0.0], [0.0], [0])


def test_extracted_answers_are_scored_as_squad_does():
    found = labels.answered(
        ["the Eiffel Tower", "in Paris"], [["Eiffel Tower"], ["Rome", "Paris, France"]]
    )
    assert found["exact_match"] == 50.0 and found["f1"] == pytest.approx(100 * (1 + 2 * 1 / 4) / 2)


def test_nothing_to_score_gives_a_number():
    with pytest.raises(ValueError, match="0 labels given for 0 wanted"):
        labels.classified([], [])
    with pytest.raises(ValueError, match="1 labels given for 2 wanted"):
        labels.correlated([1], [1, 2])
