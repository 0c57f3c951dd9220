"""Whether a passage supports an answer by its words: a check without a model, which knows numbers, inflection and negation.

It sees words, not meaning: a wrong answer made of words of one passage passes, a right one in other words than the passage's does not.
docs/memory.md says how often.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Sequence

from retrieval.words import asked, words

# Words that bear no content, or only frame an answer; they need not stand in a passage.
_FREE = """
a an the this that these those and or but so as than then if in on at of to by for from with into about over under between during after
before since until is are was were be been being am do does did has have had can could will would may might must shall should i it its he
him his she her they them their we us our you your who whom whose which what when where why how there here also only just very more most
such both each all some any other same s t d ll re ve m don doesn didn isn aren wasn weren yes no true false not answer question passage
text context according based given states stated mentioned mentions says said called named known located lies lie because due
der die das ein eine ist war und im le la les un une est et en el los las es y il lo e di del в во на и с из от это
"""
_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty
"""
_ENDINGS = """
-s -es -d -ed -ing -r -er -ers -or -ly -n -an -ian -ish -ese -e -en -isch -ische y-ies y-ied y-ian y-ians y-ily e-ing e-ian e-ish e-ese
s-d es-ed ed-ing s-ing es-ing r-s n-ns -ns -ans -ians a-an a-ans a-ian ia-ian
"""
FREE = frozenset(_FREE.split())
NUMBERS = {word: str(value) for value, word in enumerate(_NUMBERS.split())}
ENDINGS = {
    frozenset(pair.split("-")) for pair in _ENDINGS.split()
}  # of two forms of a word, after what they share
STEM = 4  # letters that two forms share at least
PERCENT = re.compile(r"%|\bper cent\b", re.IGNORECASE)
NEGATION = re.compile(
    r"\b(not|cannot|no(?!\.\s*\d)|never|neither|nor|none|nobody|nothing|nicht|keine?[rmns]?|nie|niemals|ne|jamais|nunca|non|не|нет)\b|n['’]t\b",
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
    """Whether one passage holds every content word of an answer that the question does not hold.

    A clause that is negated supports only an answer that is negated too. An answer without such words repeats the question: it
    counts if it says no, if it says yes and the question's names and numbers stand in a passage, or if the question gives a choice.
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
    """The distinct words that bear content, small numbers as digits."""
    return list(dict.fromkeys(NUMBERS.get(word, word) for word in found if word not in FREE))


def _stands(word: str, held: Collection[str]) -> bool:
    return word in held or any(same(word, other) for other in held)


def same(one: str, other: str) -> bool:
    """Whether two words are forms of one: Italy and Italian, but not Austria and Australia, nor numbers."""
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
