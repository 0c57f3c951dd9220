"""Scores of answers, against a second implementation of each published formula or by hand."""

import collections
import functools
import re
import string

import numpy as np
import pytest

from lm.data.records import reading as records
from lm.data.records.examples import Demonstration, Record
from lm.evaluation import generation, scores
from lm.evaluation.scores import (
    METRICS,
    bootstrap,
    byte_pairs,
    chosen,
    copy_demonstration,
    copy_input,
    score,
    table,
)
from tests.lm.data.test_records import REAL, real

PAIRS = [
    ("the cats sat on the mat", "a cat was sitting on a mat"),
    ("Yes.", "yes"),
    ("The  Answer!", "answer"),
    ("", "something"),
    ("...", "..."),
    ("It's 1,000 dollars", "1000 dollars"),
    ("runners running quickly", "the runner ran quick"),
    ("b a c a d", "a b a d c"),
    ("Café", "cafe"),
]


def squad_v1(answer, reference):
    """(exact match, F1) as in SQuAD's evaluate-v1.1.py."""

    def normalize_answer(s):
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    prediction_tokens, truth_tokens = (
        normalize_answer(answer).split(),
        normalize_answer(reference).split(),
    )
    common = collections.Counter(prediction_tokens) & collections.Counter(truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return normalize_answer(answer) == normalize_answer(reference), 0
    precision, recall = 1.0 * num_same / len(prediction_tokens), 1.0 * num_same / len(truth_tokens)
    return normalize_answer(answer) == normalize_answer(reference), (2 * precision * recall) / (
        precision + recall
    )


@pytest.mark.parametrize("answer, reference", PAIRS)
def test_squads_numbers_are_not_those_of_its_script(answer, reference):
    exact, f1 = squad_v1(answer, reference)
    assert scores.squad_exact_match(answer, reference) == exact
    both_empty = not scores.normalise_squad(answer) and not scores.normalise_squad(reference)
    # Version 2.0 counts two empty answers as equal.
    assert scores.f1(answer, reference) == pytest.approx(1.0 if both_empty else f1)


def test_articles_count_in_one_exact_match_and_not_in_the_other():
    assert scores.normalise_instructions(" The cat's  mat. ") == "the cats mat"
    assert scores.normalise_squad(" The cat's  mat. ") == "cats mat"
    assert (scores.exact_match("the cat", "cat"), scores.squad_exact_match("the cat", "cat")) == (
        0.0,
        1.0,
    )
    assert scores.exact_match("  YES!", "yes") == 1.0
    assert scores.exact_match("«oui»", "oui") == 0.0  # only ASCII punctuation is dropped


def stems(text):
    from nltk.stem.porter import PorterStemmer

    words = [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]
    return [PorterStemmer().stem(word) if len(word) > 3 else word for word in words]


def lcs(a, b):
    @functools.cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        return (
            1 + longest(i + 1, j + 1) if a[i] == b[j] else max(longest(i + 1, j), longest(i, j + 1))
        )

    return longest(0, 0)


@pytest.mark.parametrize("answer, reference", PAIRS)
def test_rouge_is_not_what_its_definition_says(answer, reference):
    ours, theirs = stems(answer), stems(reference)
    total = len(ours) + len(theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    assert scores.rouge_l(answer, reference) == pytest.approx(
        2 * lcs(ours, theirs) / total if total else 0.0
    )
    assert scores.rouge_1(answer, reference) == pytest.approx(2 * common / total if total else 0.0)


def test_rouge_by_hand():
    # the cat sat on the mat | a cat was sit on a mat: common subsequence cat, on, mat
    assert scores.rouge_l(*PAIRS[0]) == pytest.approx(6 / 13)
    # Common stems: gener, car.
    assert scores.rouge_l("the generations of cars", "the generated car") == pytest.approx(6 / 7)


def test_rouge_is_not_that_of_the_package_super_natural_instructions_uses():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL", "rouge1"], use_stemmer=True)
    rng, words = (
        np.random.default_rng(0),
        ["the", "cats", "cat", "running", "ran", "happily", "42", "é"],
    )
    for _ in range(30):
        answer, *references = (" ".join(rng.choice(words, rng.integers(0, 7))) for _ in range(4))
        expected = scorer.score_multi(references, answer)  # the reference with the best F1
        found = score([answer], [references], chosen("rouge_l,rouge_1"))
        assert found["rouge_l"][0] == pytest.approx(expected["rougeL"].fmeasure)
        assert found["rouge_1"][0] == pytest.approx(expected["rouge1"].fmeasure)


def test_an_answer_in_another_script_scores_nothing_with_a_tokenizer_of_its_own():
    class Spaces:
        def tokenize(self, text):
            return text.replace(" ", " Ġ").split()

    metrics = chosen("rouge_l", byte_pairs(Spaces()))
    assert metrics["rouge_l"]("кот сидит", "сидит кот") == pytest.approx(0.5)
    assert scores.rouge_l("кот сидит", "кот сидит") == 0.0
    assert metrics["rouge_l"]("running", "run") == 0.0  # no stemmer


def test_the_best_reference_counts_for_each_metric_alone():
    found = score(["b a"], [["a b c", "b x"]], METRICS)
    assert found["rouge_l"][0] == pytest.approx(0.5) and found["rouge_1"][0] == pytest.approx(0.8)
    found = score(["b c d"], [["d c b", "b c"]], METRICS)
    assert found["rouge_l"][0] == pytest.approx(0.8) and found["f1"][0] == 1.0
    with pytest.raises(ValueError, match="no reference"):
        score(["a"], [[]], METRICS)
    with pytest.raises(ValueError, match="'rougeL' is unknown; one of exact_match"):
        chosen("rougeL")


def test_the_mean_is_over_answers_and_a_group_has_its_own():
    values = {"exact_match": np.array([1.0, 0.0, 0.0, 1.0, 1.0])}
    everything, first, second = table(values, ["b", "a", "a", "a", "a"])
    assert (everything.name, everything.answers, everything.scores) == (
        "all",
        5,
        {"exact_match": 60.0},
    )
    assert (first.name, first.answers, first.scores["exact_match"]) == ("a", 4, 50.0)
    assert (second.name, second.scores["exact_match"]) == ("b", 100.0)
    assert np.isnan(second.intervals["exact_match"]).all()  # one answer has no spread
    text = scores.formatted([everything, second])
    assert text.splitlines()[2].startswith("| all | 5       | 60.0 [") and text.splitlines()[
        3
    ].startswith("| b   | 1       | 100.0 ")


def test_the_interval_does_not_cover_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    samples = [rng.exponential(2.0, 60) for _ in range(200)]
    covered = [
        low <= 2.0 <= high
        for low, high in (bootstrap(x, resamples=300, seed=i) for i, x in enumerate(samples))
    ]
    assert 0.88 <= np.mean(covered) <= 0.98
    low, high = bootstrap(samples[0])
    error = samples[0].std() / np.sqrt(60)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert bootstrap(samples[0]) == (low, high)


def test_answers_of_one_task_count_as_independent():
    levels = np.repeat(np.random.default_rng(0).normal(size=10), 100)
    tasks = np.repeat([f"task{i}" for i in range(10)], 100).tolist()
    (narrow_low, narrow_high), (low, high) = bootstrap(levels), bootstrap(levels, tasks)
    assert high - low > 5 * (narrow_high - narrow_low)


def test_the_copying_baselines():
    assert copy_input(["a b", "c"]) == ["a b", "c"]
    demonstrations = [["yes", "no"]] * 50 + [[]]
    drawn = copy_demonstration(demonstrations, seed=3)
    assert (
        drawn
        == copy_demonstration(demonstrations, seed=3)
        != copy_demonstration(demonstrations, seed=4)
    )
    assert set(drawn[:50]) == {"yes", "no"} and drawn[50] == ""


def asked(records):
    return [
        generation.Question([], "", record, record.references or (record.output,))
        for record in records
    ]


def test_copying_scores_other_than_by_hand():
    shown = (Demonstration("x", "two cats", None),) * 2
    rows = [
        # Input: cat of 3 and 2 words. Demonstration: the stem of cats, of 2 and 2.
        Record("Say it.", "a cat sat", "the cat", positive=shown),
        # Without an input the instruction is copied; without a demonstration nothing.
        Record("the cat", "", "the cat"),
    ]
    found = generation.baselines(asked(rows), chosen("rouge_l,exact_match"))
    assert found["copy input"]["rouge_l"].tolist() == pytest.approx([0.4, 1.0])
    assert found["copy demonstration"]["rouge_l"].tolist() == pytest.approx([0.5, 0.0])
    assert found["copy input"]["exact_match"].tolist() == [0.0, 1.0]


@real
def test_copying_the_input_of_super_natural_instructions_scores_far_from_what_is_published():
    rows = records.read(str(REAL / "natural-instructions"), records.Reading()).records
    mean = (
        100 * generation.baselines(asked(rows), chosen("rouge_l"))["copy input"]["rouge_l"].mean()
    )
    assert 7 < mean < 20  # 14.2 on the test tasks (Wang et al. 2022, table 3)
