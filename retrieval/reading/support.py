"""Lexical support: whether a passage contains the words of an answer.

A check without a model that handles numbers, inflection and negation. It sees words, not meaning: a
wrong answer made of one passage's words passes, and a right answer in other words does not.
docs/memory.md says how often.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Sequence

from retrieval.store.words import asked, words

# Words without content or that only frame an answer; a passage need not contain them.
_FREE = (
    "\n"
    "a an the this that these those and or but so as than then if in on at of to by for from "
    "with into about over under between during after\n"
    "before since until is are was were be been being am do does did has have had can could "
    "will would may might must shall should i it its he\n"
    "him his she her they them their we us our you your who whom whose which what when where "
    "why how there here also only just very more most\n"
    "such both each all some any other same s t d ll re ve m don doesn didn isn aren wasn weren "
    "yes no true false not answer question passage\n"
    "text context according based given states stated mentioned mentions says said called named "
    "known located lies lie because due\n"
    "der die das ein eine ist war und im le la les un une est et en el los las es y il lo e di "
    "del в во на и с из от это\n"
)
_NUMBERS = (
    "\n"
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty\n"
)
_ENDINGS = (
    "\n"
    "-s -es -d -ed -ing -r -er -ers -or -ly -n -an -ian -ish -ese -e -en -isch -ische y-ies "
    "y-ied y-ian y-ians y-ily e-ing e-ian e-ish e-ese\n"
    "s-d es-ed ed-ing s-ing es-ing r-s n-ns -ns -ans -ians a-an a-ans a-ian ia-ian\n"
)
FREE = frozenset(_FREE.split())
NUMBERS = {word: str(value) for value, word in enumerate(_NUMBERS.split())}
# Pairs of endings of two forms of a word, after their common prefix.
ENDINGS = {frozenset(pair.split("-")) for pair in _ENDINGS.split()}
STEM = 4  # least common prefix of two forms, in letters
PERCENT = re.compile(r"%|\bper cent\b", re.IGNORECASE)
NEGATION = re.compile(
    r"\b(not|cannot|no(?!\.\s*\d)|never|neither|nor|none|nobody|nothing|nicht|keine?[rmns]?"
    r"|nie|niemals|ne|jamais|nunca|non|не|нет)\b|n['’]t\b",
    re.IGNORECASE,
)
CLAUSE = re.compile(
    r"[.;:!?,]+(?=\s)|[()—。！？；，؟।]|\b(?:but|sondern|mais|sino)\b", re.IGNORECASE
)
YES, NO = (
    re.compile(r"\W*(yes|true|correct)\b", re.IGNORECASE),
    re.compile(r"\W*(no|false|incorrect)\b", re.IGNORECASE),
)
CHOICE = re.compile(r"\b(or|oder|ou|или)\b|还是|または", re.IGNORECASE)
NAME = re.compile(r"(?<=\s)[^\W\d_a-z]\w+|\d[\d.,]*")


def supported(question: str, text: str, passages: Sequence[str]) -> bool:
    """Whether one passage contains every content word of an answer that the question lacks.

    A negated clause supports only a negated answer. An answer without such words repeats the
    question. It counts if it says no, if it says yes and a passage contains the question's names
    and numbers, or if the question offers a choice.
    """
    denied = NO.match(text)
    text = text[denied.end() :] if denied else text
    known = _content(words(_units(question)))
    said = _content(asked(_units(text), parts=False))
    new = [word for word in said if not _stands(word, known)]
    if not new:
        if denied:
            return True
        if YES.match(text):
            new = [
                word
                for name in NAME.findall(question)
                for word in _content(asked(name, parts=False))
            ]
        elif CHOICE.search(question):
            new = said
        if not new:
            return bool(YES.match(text))
    negated = None if NEGATION.search(question) else bool(NEGATION.search(text))
    for passage in passages:
        clauses = [
            clause
            for clause in CLAUSE.split(_units(passage))
            if negated in (None, bool(NEGATION.search(clause)))
        ]
        held = _content(itertools.chain.from_iterable(map(words, clauses)))
        if all(_stands(word, held) for word in new):
            return True
    return False


def _units(text: str) -> str:
    return PERCENT.sub(" percent ", text)


def _content(found: Iterable[str]) -> list[str]:
    """Return the distinct content words, small numbers as digits."""
    return list(dict.fromkeys(NUMBERS.get(word, word) for word in found if word not in FREE))


def _stands(word: str, held: Collection[str]) -> bool:
    return word in held or any(same(word, other) for other in held)


def same(one: str, other: str) -> bool:
    """Whether two words are forms of one: Italy and Italian, but not Austria and Australia.

    Numbers are never forms of each other.
    """
    if one == other:
        return True
    if (
        not (one.isalpha() and other.isalpha())
        or one[:STEM] != other[:STEM]
        or min(len(one), len(other)) < STEM
    ):
        return False
    shared = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    rest = one[shared:], other[shared:]
    return (
        frozenset(rest) in ENDINGS
        if one.isascii() and other.isascii()
        else max(map(len, rest)) <= 2
    )
