"""Rule rewards: what they reward, and what is said of those that fail."""

import json
import math
import pathlib
import re

import pytest

import lm
from lm import reward_model, rewards
from lm.data import templates, tokenizers
from lm.data.encode.encoding import Encoder
from lm.data.records.examples import Record
from lm.models.config import ConfigError
from tests.lm.small_models import drawn, tiny
from tests.lm.tasks import policies


def given(type, text, record=None, **options):
    """Reward of one answer."""
    (one,) = rewards.of({"it": {"type": type, **options}}, rewards.REWARDS)
    return one.function(rewards.Answer("ask", text, record or {}), **one.options)


@pytest.mark.parametrize(
    ("type", "text", "record", "options", "reward"),
    [
        ("exact_match", " The Cat.", {"answer": ["dog", "the  cat"]}, {}, 1),
        ("exact_match", "The Cat", {"answer": "the cat"}, {"normalise": False}, 0),
        ("format", "<a>x</a>", {}, {"pattern": r"<a>.*</a>"}, 1),
        ("format", "so <a>x</a>", {}, {"pattern": r"<a>.*</a>"}, 0),
        ("format", "so <a>x</a>", {}, {"pattern": r"<a>.*</a>", "whole": False}, 1),
        ("ended", "x", {}, {}, 1),
        ("citations", "It is so [1] and [4].", {}, {"passages": 3}, 0.5),
        ("citations", "It is so [2].", {"right": [2, 3]}, {"field": "right"}, 1),
        ("citations", "It is so.", {}, {}, 0),
    ],
)
def test_a_rule_rewards_what_it_should_not(type, text, record, options, reward):
    assert given(type, text, record, **options) == reward


FOLLOWED = {
    "punctuation:no_comma": ({}, "none here", "one, two"),
    "change_case:english_lowercase": ({}, "all low.", "Not low."),
    "change_case:english_capital": ({}, "ALL UP!", "Not UP"),
    "change_case:capital_word_frequency": (
        {"capital_relation": "less than", "capital_frequency": 2},
        "ONE up",
        "ONE TWO",
    ),
    "length_constraints:number_words": ({"relation": "at least", "num_words": 3}, "a b c", "a b"),
    "length_constraints:number_sentences": (
        {"relation": "less than", "num_sentences": 2},
        "One.",
        "One. Two.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a"),
    "keywords:existence": ({"keywords": ["cat", "Dog"]}, "a dog, a cat", "a catalogue, a dog"),
    "keywords:forbidden_words": ({"forbidden_words": ["rock"]}, "a rocket", "a Rock"),
    "keywords:frequency": (
        {"relation": "at least", "keyword": "it", "frequency": 2},
        "it is It",
        "it is its",
    ),
    "keywords:letter_frequency": (
        {"let_relation": "less than", "letter": "a", "let_frequency": 2},
        "Ab",
        "A, a",
    ),
    "startend:quotation": ({}, '"so"', '"so" he said'),
    "startend:end_checker": ({"end_phrase": "The end."}, "It is the end.", "The end. Or not"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a\n**b**"),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        "*a* and **b**",
        "*a* and b",
    ),
    "detectable_format:title": ({}, "<<a>>\nb", "<< >> b"),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] [b]", "[a]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "So. P. S. no", "So."),
    "combination:two_responses": ({}, "a ****** b", "a ****** a"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say a."}, "say A. a", "a"),
}


def test_an_instruction_is_not_checked_as_the_benchmark_describes_it():
    from lm.rewards.instructions import CHECKS

    assert CHECKS.keys() == FOLLOWED.keys()
    for name, (kwargs, good, bad) in FOLLOWED.items():
        record = {"instruction_id_list": [name], "kwargs": [kwargs]}
        assert given("instructions", good, record) == 1, name
        assert given("instructions", bad, record) == 0, name
    both = {
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation", "other:one"],
        "kwargs": [{}, {}, {}],
    }
    assert given("instructions", "a", both) == 0.5
    assert given("instructions", "a", both, strict=True) == 0
    with pytest.raises(ValueError, match="no check for other:one"):
        given("instructions", "a", {"instruction_id_list": ["other:one"], "kwargs": [{}]})


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, "task.rewards names no reward"),
        ({"exact": {}}, r"task\.rewards\.exact\.type='exact' is unknown"),
        ({"exact_match": 1}, r"task\.rewards\.exact_match=1: expected fields"),
        ({"ended": {"weight": "x"}}, r"weight='x': expected a finite number"),
        ({"ended": {"weight": math.inf}}, r"weight=inf: expected a finite number"),
        ({"exact_match": {"fields": "a"}}, r"has no such option.*; it has field, normalise"),
        ({"format": {}}, r"task\.rewards\.format\.pattern is not set"),
        ({"own": {"type": "tests.none:f"}}, "cannot be used .ModuleNotFoundError"),
        ({"own": {"type": "tests.lm.tasks.policies:REWARD"}}, "expected a function"),
    ],
)
def test_a_section_that_cannot_be_used_is_accepted(sections, words):
    with pytest.raises(ConfigError, match=words):
        rewards.of(sections, rewards.REWARDS)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", "raised KeyError: 'no such key' on 'aaa', .*"),
        ("nan", "returned nan on 'aaa', expected a finite number"),
        ("shape", r"returned shape \(2,\) on 'aaa', expected one number"),
        ("text", "returned str on 'aaa', expected one number"),
    ],
)
def test_a_reward_that_fails_is_not_named_with_its_file(fault, words, caplog):
    section = {"mine": {"type": policies.REWARD, "fault": fault}}
    one = rewards.of(section, rewards.REWARDS)
    answers = [rewards.Answer("ask", "aaa", {})] * 2
    where = r"2 of 2 answers have no reward, .*reward 'mine' \(tests/lm/tasks/policies\.py\) "
    with pytest.raises(ConfigError, match=where + words.removesuffix(", .*")):
        rewards.score(one, answers)
    found = rewards.score(one, answers, most_bad=1.0)
    assert all(map(math.isnan, found.total)) and len(found.faults) == 2
    assert re.search(r"2 of 2 answers have no reward and are left out: .*mine", caplog.text)


def test_a_batched_reward_of_too_few_answers_is_accepted():
    one = rewards.of({"mine": {"type": "tests.lm.test_rewards:first"}}, rewards.REWARDS)
    answers = [rewards.Answer("ask", "aaa", {})] * 3
    with pytest.raises(ConfigError, match=r"test_rewards.py\) returned 1 numbers for 3 answers"):
        rewards.score(one, answers)


@rewards.batched
def first(answers):
    return [1.0 for _ in answers[:1]]


def test_the_reward_of_the_page_is_not_one(tmp_path, monkeypatch):
    page = pathlib.Path(__file__).parents[2] / "docs/reinforcement.md"
    (text,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert given("my_rewards:short", "12345678", most=40) == 0.8


def test_weights_of_rewards_are_ignored():
    sections = json.loads('{"ended": {"weight": 0.5}, "exact_match": {"weight": 2}}')
    found = rewards.score(
        rewards.of(sections, rewards.REWARDS),
        [rewards.Answer("ask", text, {"answer": "b"}, ended=text != "a") for text in "ab"],
    )
    assert found.total.tolist() == [0.0, 2.5] and found.each["exact_match"].tolist() == [0, 1]


TYPE = "lm.reward_model:score"


def test_a_reward_model_scores_another_text(monkeypatch):
    """Against single rows; a long answer has no reward."""
    head = {"head": "sequence_classification", "n_labels": 1, "pad_token_id": 0}
    model = tiny("llama", vocab_size=300, **head)[0]
    tokenizer = tokenizers.bytes_only()
    template = templates.get("plain", tokenizer)
    encoder = Encoder(tokenizer)
    loaded = lambda path: (model, drawn(model, 0.3), template, encoder)
    monkeypatch.setattr(reward_model, "_loaded", loaded)
    texts = ["yes", "no, not at all", "x" * (model.config.max_length + 1)]
    answers = [rewards.Answer("Is it?", text, {}) for text in texts]
    (one,) = rewards.of({"it": {"type": TYPE, "path": "runs/reward"}}, rewards.REWARDS)
    found = rewards.score([one], answers, 0.5)
    assert "reward_model.py" in one.where and "returned nan" in found.faults[0]
    for text, score in zip(texts[:2], found.total[:2], strict=True):
        (example,) = encoder([template.render(Record("Is it?", output=text), 0)])
        single = lm.forward(model, drawn(model, 0.3), lm.Batch.of(example.ids[None]))
        assert score == pytest.approx(float(single.logits[0, 0]), rel=1e-4)
    assert found.total[0] != found.total[1] and math.isnan(found.total[2])
    with pytest.raises(ConfigError, match="batch=0 of a reward model"):
        reward_model.score.many(answers, path="x", batch=0)
    with pytest.raises(ConfigError, match=r"rewards\.it\.path is not set"):
        rewards.of({"it": {"type": TYPE}}, rewards.REWARDS)
    monkeypatch.undo()
    reward_model._loaded.cache_clear()
    monkeypatch.setattr("lm.weights.loading.load", lambda _: (*tiny("llama"), tokenizer))
    with pytest.raises(ConfigError, match=r"path='gpt' has head='causal_lm'.*expected a reward"):
        reward_model.score.many(answers, path="gpt")
