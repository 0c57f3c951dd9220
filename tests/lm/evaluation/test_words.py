"""Scores in any script: ROUGE against rouge_score with a tokenizer object, and words by hand."""

import json

import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from lm import evaluate
from lm.data import tokenizers
from lm.evaluation import generation, scores, words
from lm.models.config import ConfigError
from lm.training import scheduled
from tests.lm.evaluation.test_generation import folder  # noqa: F401
from tests.lm.training.test_instruction import config

WORDS = {  # expected words, by hand
    "Кот сидит.": ["кот", "сидит"],
    "狗在跑。": ["狗", "在", "跑"],
    "日本語 です": ["日", "本", "語", "で", "す"],
    "한국어 단어": ["한국어", "단어"],
    "नमस्ते दुनिया": ["नमस्ते", "दुनिया"],  # vowel signs stay in their word
    "สวัสดี": ["ส", "วั", "ส", "ดี"],
    "مرحبا، عالم؟": ["مرحبا", "عالم"],
    "Ｃａｔ １２": ["cat", "12"],
    "ﾊﾟﾝ": ["パ", "ン"],
    "km² ﬁn": ["km2", "fin"],
    "nai\u0308ve": ["naïve"],
    "co\u00adop": ["coop"],
    "GPT-4在跑": ["gpt", "4", "在", "跑"],
    "Straße": ["strasse"],
    "👍 !": [],
    "": [],
}


@pytest.mark.parametrize("text", WORDS)
def test_words_of_a_script_are_lost_or_cut(text):
    assert words.unicode_words(text) == WORDS[text]


def test_rouge_is_not_that_of_the_package_with_these_words():
    class ByHand(Tokenizer):
        def tokenize(self, text):
            return WORDS[text]

    scorer = RougeScorer(["rougeL", "rouge1"], tokenizer=ByHand())
    metrics = scores.chosen("rouge_l,rouge_1", words.tokenize_of("unicode"))
    texts = [text for text in WORDS if WORDS[text]]
    for answer, reference in [(a, b) for a in texts for b in texts]:
        expected = scorer.score(reference, answer)
        assert metrics["rouge_l"](answer, reference) == pytest.approx(expected["rougeL"].fmeasure)
        assert metrics["rouge_1"](answer, reference) == pytest.approx(expected["rouge1"].fmeasure)
    assert (
        metrics["rouge_l"]("狗在跑。", "狗在跑。") == 1.0
        and scores.rouge_l("狗在跑。", "狗在跑。") == 0.0
    )


@pytest.mark.parametrize(
    "answer, reference, exact, f1",
    [
        ("狗在跑", "狗在跑。", 1.0, 1.0),
        ("猫在跑。", "狗在跑。", 0.0, 2 / 3),
        ("«oui»", "oui", 1.0, 1.0),
        ("مرحبا؟", "مرحبا", 1.0, 1.0),
        ("１，０００", "1,000", 1.0, 1.0),
        ("1,000", "1000", 1.0, 1.0),
        ("it's", "its", 1.0, 1.0),
        ("the cat", "cat", 0.0, 2 / 3),
        ("кот сидит", "сидит кот", 0.0, 1.0),
        ("", "。", 1.0, 1.0),
        ("क", "के", 0.0, 0.0),
    ],
)
def test_answers_that_differ_in_punctuation_or_share_words_score_as_others(
    answer, reference, exact, f1
):
    assert scores.unicode_exact_match(answer, reference) == exact
    assert scores.unicode_f1(answer, reference) == pytest.approx(f1)


def test_who_drops_what_is_not_said():
    assert [
        words.dropped(text)
        for text in (
            "狗在跑。",
            "кот",
            "GPT-4在跑",
            "été à la plage",
            "naïve",
            "42",
            "...",
            "ＡＢＣ",
        )
    ] == ([True, True, False, False, False, False, False, True])
    references = [["狗"], ["dog", "狗"], ["dog"]]
    said = words.doubt(references, ["exact_match", "rouge_l"], "rouge")
    assert "of 1 of 3 reference answers, such as '狗'" in said and "rouge_l say" in said
    assert not words.doubt(references, ["exact_match"], "rouge") and not words.doubt(
        references, ["rouge_l"], "unicode"
    )


def test_the_command_gives_0_for_the_right_answer_and_says_nothing(
    folder,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    rows = [("把猫翻译成英文的反义", "狗在跑。"), ("кто сидит", "кот сидит")]
    lines = [
        json.dumps({"instruction": asked, "input": "", "output": answer}) for asked, answer in rows
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(
        generation,
        "answers",
        lambda *_, **__: [generation.Answer("狗在跑", True), generation.Answer("кот", True)],
    )
    args = [
        f"--model={folder}/run",
        f"--examples={tmp_path}/x.jsonl",
        "--max-new-tokens=4",
        "--json",
    ]
    assert evaluate.main(args) == 0
    printed = capsys.readouterr()
    assert (
        printed.err.startswith("warning: of 2 of 2 reference answers")
        and "--rouge" not in printed.out
    )
    assert (
        json.loads(printed.out)["all"]["scores"]["rouge_l"] == 0.0
        and len(json.loads(printed.out)["warnings"]) == 1
    )
    assert (
        evaluate.main([*args, "--rouge-tokenizer=unicode", "--metrics=rouge_l,unicode_exact_match"])
        == 0
    )
    printed = capsys.readouterr()
    assert not printed.err and json.loads(printed.out)["rouge_tokenizer"] == "unicode"
    assert json.loads(printed.out)["all"]["scores"] == pytest.approx(
        {"rouge_l": (100 + 200 / 3) / 2, "unicode_exact_match": 50.0, "stop_rate": 100.0}
    )
    tokenizers.bytes_only().save_pretrained(tmp_path / "bytes")
    assert evaluate.main([*args, f"--rouge-tokenizer={tmp_path}/bytes", "--metrics=rouge_l"]) == 0
    found = json.loads(capsys.readouterr().out)["all"]["scores"][
        "rouge_l"
    ]  # 9 of 12 bytes, 6 of 17
    assert found == pytest.approx(50 * (18 / 21 + 12 / 23))
    assert evaluate.main([*args, f"--rouge-tokenizer={tmp_path}/none"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_scores_with_other_words_than_its_config_names(tmp_path):
    c = config(
        tmp_path,
        **{"eval.generation.files": "hold_out", "eval.generation.rouge_tokenizer": "unicode"},
    )
    (answers,) = (one.evaluator for one in scheduled.scheduled(c) if one.name == "generation")
    metrics = answers._metrics()
    assert metrics["rouge_l"]("狗", "狗") == 1.0
    assert [*metrics] == ["exact_match", "f1", "rouge_l"]
    c.eval.generation.metrics = "rouge_2"
    said = r"eval\.generation\.metrics=.*metric 'rouge_2' is unknown"
    with pytest.raises(ConfigError, match=said):
        scheduled.check(c)


def test_extracted_answers_in_other_scripts_have_no_score_of_their_own():
    from lm.evaluation import labels

    found = labels.answered(["狗在跑", "猫"], [["狗在跑。"], ["猫在"]])
    assert found == pytest.approx(
        {"exact_match": 0.0, "f1": 0.0, "unicode_exact_match": 50.0, "unicode_f1": 50 * (1 + 2 / 3)}
    )
