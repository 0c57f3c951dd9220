"""BLEU and chrF of a corpus, against sacreBLEU's own figures."""

import sys

import numpy as np
import pytest

from lm.evaluation import scores

sacrebleu = pytest.importorskip("sacrebleu")
metrics = pytest.importorskip("sacrebleu.metrics")

ANSWERS = [
    "Das Haus ist sehr alt.",
    "Der Hund schläft im Garten.",
    "Es regnet.",
    "Wir sehen das blaue Meer am Morgen.",
]
REFERENCES = [
    ["Das Haus ist alt.", "Das Haus ist sehr alt."],
    ["Der Hund schläft heute im Garten."],
    ["Es regnet heute."],
    ["Wir sehen das Meer am Morgen.", "Am Morgen sehen wir das Meer."],
]
KINDS = {"bleu": metrics.BLEU, "chrf": metrics.CHRF}


def theirs(name, rows):
    """Score of sacreBLEU, whose references come in columns."""
    columns = [
        [REFERENCES[row][i] if i < len(REFERENCES[row]) else None for row in rows] for i in (0, 1)
    ]
    return KINDS[name]().corpus_score([ANSWERS[row] for row in rows], columns).score


@pytest.mark.parametrize("name", KINDS)
def test_the_score_of_a_corpus_is_a_mean_over_its_sentences(name):
    found = scores.score(ANSWERS, REFERENCES, scores.chosen(name))
    lines = scores.table(found, ["a", "b", "a", "b"])
    assert [line.scores[name] for line in lines] == pytest.approx(
        [theirs(name, rows) for rows in ([0, 1, 2, 3], [0, 2], [1, 3])]
    )
    sentences = np.mean([theirs(name, [row]) for row in range(4)])
    assert abs(lines[0].scores[name] - sentences) > 0.5
    low, high = lines[0].intervals[name]
    assert low <= lines[0].scores[name] <= high
    assert name in scores.formatted(lines) and scores.numbers(lines[0])["scores"][name] > 0


@pytest.mark.parametrize("name", KINDS)
def test_the_interval_resamples_other_things_than_sentences_or_clusters(name):
    found = scores.score(ANSWERS, REFERENCES, scores.chosen(name))[name]
    rng = np.random.default_rng(0)
    drawn = [theirs(name, rng.integers(4, size=4).tolist()) / 100 for _ in range(20)]
    expected = np.quantile(drawn, [0.025, 0.975])
    assert scores.bootstrap(found, resamples=20) == pytest.approx(tuple(expected))
    low, high = scores.bootstrap(found, ["a", "a", "b", "b"], resamples=50)
    halves = [theirs(name, rows) / 100 for rows in ([0, 1], [2, 3])]
    assert (low, high) == pytest.approx((min(halves), max(halves)))
    assert np.isnan(scores.bootstrap(found, ["a"] * 4)).all()


def test_a_report_has_no_signature():
    found = scores.score(ANSWERS, REFERENCES, scores.chosen("bleu,chrf,exact_match"))
    signatures = scores.signatures(found)
    assert set(signatures) == {"bleu", "chrf"}
    version = f"version:{sacrebleu.__version__}"
    assert signatures["bleu"] == f"nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    assert signatures["chrf"] == f"nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|{version}"


def test_a_missing_package_or_reference_is_found_after_the_answers(monkeypatch):
    bleu = scores.chosen("bleu")
    with pytest.raises(ValueError, match="the answer 'b' has no reference"):
        scores.score(["a", "b"], [["a"], []], bleu)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ValueError, match="'bleu' needs the package sacrebleu: pip install sacreb"):
        scores.chosen("f1,bleu")
    with pytest.raises(ValueError, match=r"metric 'blue' is unknown; one of .*bleu, chrf"):
        scores.chosen("blue")
