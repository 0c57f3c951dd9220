"""Verifiable instructions: checks of IFEval (Zhou et al. 2023, arXiv 2311.07911, table 1).

A record has `instruction_id_list` and `kwargs`, one dict for each instruction. The checks read as
the benchmark describes them; words and sentences are found by regular expressions, without NLTK, so
counts of sentences may differ by one from the authors' code.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from lm.rewards.reward import Answer

WORD = re.compile(r"\w+(?:['’-]\w+)*")
SENTENCE = re.compile(r"[^.!?]+[.!?]*")


def _relation(found: int, relation: str | None, number: int) -> bool:
    return found < number if relation == "less than" else found >= number


def _words(text: str) -> list[str]:
    return WORD.findall(text)


def _has(text: str, phrase: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE))


def _json(text: str) -> bool:
    text = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _paragraphs(text: str, number: int) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    inner = parts[1:-1] if len(parts) > 2 else []
    return all(inner) and sum(map(bool, parts)) == number


def _sentences(text: str) -> int:
    return sum(bool(_words(part)) for part in SENTENCE.findall(text))


def _upper(text: str) -> int:
    return sum(word.isupper() for word in _words(text))


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "punctuation:no_comma": lambda text, k: "," not in text,
    "change_case:english_lowercase": lambda text, k: text.islower(),
    "change_case:english_capital": lambda text, k: text.isupper(),
    "change_case:capital_word_frequency": lambda text, k: _relation(
        _upper(text), k["capital_relation"], k["capital_frequency"]
    ),
    "length_constraints:number_words": lambda text, k: _relation(
        len(_words(text)), k["relation"], k["num_words"]
    ),
    "length_constraints:number_sentences": lambda text, k: _relation(
        _sentences(text), k["relation"], k["num_sentences"]
    ),
    "length_constraints:number_paragraphs": lambda text, k: _paragraphs(text, k["num_paragraphs"]),
    "keywords:existence": lambda text, k: all(_has(text, word) for word in k["keywords"]),
    "keywords:forbidden_words": lambda text, k: (
        not any(_has(text, word) for word in k["forbidden_words"])
    ),
    "keywords:frequency": lambda text, k: _relation(
        _has(text, k["keyword"]), k["relation"], k["frequency"]
    ),
    "keywords:letter_frequency": lambda text, k: _relation(
        text.lower().count(k["letter"].lower()), k["let_relation"], k["let_frequency"]
    ),
    "startend:quotation": lambda text, k: len(text) > 1 and text[0] == '"' == text[-1],
    "startend:end_checker": lambda text, k: (
        text.strip('"').lower().endswith(k["end_phrase"].strip().lower())
    ),
    "detectable_format:number_bullet_lists": lambda text, k: (
        len(re.findall(r"^\s*(?:\*[^*]|-)", text, re.MULTILINE)) == k["num_bullets"]
    ),
    "detectable_format:number_highlighted_sections": lambda text, k: (
        len(re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", text)) >= k["num_highlights"]
    ),
    "detectable_format:title": lambda text, k: any(
        title.strip() for title in re.findall(r"<<([^\n]+)>>", text)
    ),
    "detectable_format:json_format": lambda text, k: _json(text),
    "detectable_content:number_placeholders": lambda text, k: (
        len(re.findall(r"\[.*?\]", text)) >= k["num_placeholders"]
    ),
    "detectable_content:postscript": lambda text, k: (
        k["postscript_marker"].replace(" ", "").lower() in text.replace(" ", "").lower()
    ),
    "combination:two_responses": lambda text, k: (
        len({part.strip() for part in text.split("******") if part.strip()}) == 2
    ),
    "combination:repeat_prompt": lambda text, k: (
        text.strip().lower().startswith(k["prompt_to_repeat"].strip().lower())
    ),
}


def instructions(answer: Answer, *, strict: bool = False) -> float:
    """Share of the record's instructions that the answer follows; strict: 1.0 only for all.

    Raises ValueError for a record without any of CHECKS; others in it do not count.
    """
    record, text = answer.record, answer.text.strip()
    asked = list(zip(record["instruction_id_list"], record["kwargs"], strict=True))
    known = [(CHECKS[name], kwargs) for name, kwargs in asked if name in CHECKS]
    if not known:
        names = ", ".join(name for name, _ in asked)
        raise ValueError(f"no check for {names or 'no instruction'}; those are {', '.join(CHECKS)}")
    followed = [bool(text) and check(text, kwargs) for check, kwargs in known]
    return float(all(followed)) if strict else sum(followed) / len(followed)
