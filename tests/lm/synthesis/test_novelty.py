"""ROUGE-L to the most similar text against rouge_score, text by text."""

import random

import pytest
from rouge_score import rouge_scorer

from lm.synthesis.novelty import Novelty

WORDS = (
    "write",
    "a",
    "the",
    "list",
    "of",
    "three",
    "for",
    "each",
    "town",
    "and",
    "say",
    "why",
    "old",
)


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(300)]


def test_the_nearest_text_is_not_rouge_scores(texts):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    pool = Novelty(texts[:200])
    for text in [*texts[200:], "The, THE the!", "it's 3 o'clock: write a list"]:
        score, at = pool.nearest(text)
        each = [scorer.score(one, text)["rougeL"].fmeasure for one in texts[:200]]
        assert score == pytest.approx(max(each), abs=1e-12)
        assert at == -1 or each[at] == pytest.approx(max(each), abs=1e-12)


def test_texts_added_later_are_not_found(texts):
    pool = Novelty()
    assert pool.nearest("Write a list") == (0.0, -1)
    for number, text in enumerate(texts[:50]):
        pool.add(text)
        assert pool.nearest(text)[0] == 1.0
        assert len(pool) == number + 1


def test_words_of_other_scripts_are_dropped():
    pool = Novelty(["Назови столицу страны", "列出三个城市"])
    assert pool.nearest("Назови столицу Франции") == (pytest.approx(2 / 3), 0)
    assert pool.nearest("列出三个城市")[0] == 1.0
    assert pool.nearest("!!!") == (0.0, -1)
