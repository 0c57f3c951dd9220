"""Accuracy of short answers: which answers count as equal, and the confidence interval."""

import pytest

from lm.evaluation.accuracy import contains, exact, normalise, wilson


@pytest.mark.parametrize(
    "text, plain",
    [
        ("  The Côte-d'Ivoire. ", "cote d ivoire"),
        ("U.S.A. and the U.K.", "usa and uk"),
        ("São_Tomé", "sao tome"),
        ("an Italy!", "italy"),
        ("…", ""),
        ("東京", "東京"),
    ],
)
def test_case_accents_punctuation_and_articles_do_not_count(text, plain):
    assert normalise(text) == plain


def test_exact_means_nothing_more():
    assert exact("Italy.", ["Spain", "italy"]) and not exact("In Italy", ["Italy"])


@pytest.mark.parametrize(
    "text, right",
    [
        ("Bagheria is in Italy, Europe.", True),
        ("It is Italian.", False),
        ("", False),
    ],
)
def test_an_answer_counts_as_whole_words(text, right):
    assert contains(text, ["Italy"]) is right


def test_niger_is_not_in_nigeria_nor_guinea_in_guinea_bissau():
    assert not contains("Nigeria", ["Niger"])
    assert not contains("Guinea-Bissau", ["Guinea"], others=["Guinea-Bissau"])
    assert contains("Guinea-Bissau or Guinea", ["Guinea"], others=["Guinea-Bissau"])


def test_a_longer_right_name_wins_over_a_wrong_one_inside_it():
    assert contains(
        "People's Republic of China", ["People's Republic of China"], others=["Republic of China"]
    )
    assert not contains("Republic of China", ["China"], others=["Republic of China"])


def test_an_empty_answer_is_never_found():
    assert not contains("anything", ["", "..."])


@pytest.mark.parametrize(
    "successes, trials, interval",
    [
        (0, 20, (0.0, 0.1611)),
        (20, 20, (0.8389, 1.0)),
        (10, 20, (0.2993, 0.7007)),
        (81, 263, (0.2553, 0.3662)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_the_interval_is_the_one_in_the_tables(successes, trials, interval):
    # 81 of 263: Newcombe 1998, Statistics in Medicine 17, table I, method 3
    assert wilson(successes, trials) == pytest.approx(interval, abs=5e-5)


def test_more_successes_than_trials_is_an_error():
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson(3, 2)
