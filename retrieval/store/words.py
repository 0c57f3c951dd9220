"""Text normalisation and word splitting for the word index, queries, duplicates and answer support.

`plain` removes encoding differences: Unicode composition, width, ligatures, case, digits of other
scripts, digit grouping, invisible characters. `words` also removes accents, Arabic and Hebrew vowel
points and letter variants, then splits. Scripts without spaces, and Hangul, whose particles are
joined to words, become overlapping character pairs.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator

LONGEST = 100  # characters of a word that count
SEAM = "\u200c"  # zero-width non-joiner: a word with it counts as a whole and in parts
UNSPACED = (  # Thai, Lao, Burmese, Hangul, Khmer; kana, Han
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\uac00-\ud7a3"
    "\u3005-\u3007\u3041-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Optional marks: accents, Cyrillic titla, Hebrew points, Arabic and Syriac vowels.
ACCENTS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a"
    "\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0711\u0730-\u074a"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
LETTERS = str.maketrans(
    dict(zip("øłđðħŧıŋ", "oldd" + "htin", strict=True))
    | {"æ": "ae", "œ": "oe", "þ": "th"}
    | dict.fromkeys("ٱ", "ا")
    | dict.fromkeys("ىیېے", "ي")
    | dict.fromkeys("ةہھەۀ", "ه")
    | {"ک": "ك", "ـ": None}
)
SIGNS = str.maketrans(
    dict.fromkeys("ʹʻʼʽˈ‘’‛′`´＇׳", "'")
    | dict.fromkeys("™℠®", " ")
    | {"٫": ".", "٬": ",", "\u200b": SEAM}
)
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200d-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e01ef]+"
)
OTHER_DIGIT = re.compile(r"[^\D0-9]")
# Superscripts, subscripts, fractions and circled digits: ², ½, ①.
SMALL = (
    "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2079\u2080-\u2089\u2150-\u215f\u2189\u2460-\u24ff"
    "\u2776-\u2793"
)
AFTER_DIGIT, AFTER_LETTER = (
    re.compile(f"(?<=[0-9])(?=[{SMALL}])"),
    re.compile(rf"(?<=[^\W\d{SMALL}])(?:\^(?=\d)|(?=[{SMALL}]))"),
)
GROUPED = re.compile(
    r"(?<![\w.,])(?:\d{1,3}([,'\u00a0\u202f\u2009])\d{3}(?:\1\d{3})*"
    r"|\d{1,2}(?:,\d\d)+,\d{3}|\d{1,3}(?:\.\d{3}){2,})(?![\d])"
)
NUMBER = r"\d+(?:[.,]\d+)+(?!\w)"
ASCII_WORD = re.compile(rf"{NUMBER}|\w+", re.ASCII)
OWNER = re.compile(r"(?<=\w)'s\b")
BREVE = "\u0438\u0306"  # decomposed Russian й, a letter and not an accented one


def plain(text: str) -> str:
    """Return the text in lower case and one encoding.

    5,000 and ５０００ become 5000; 10⁶ becomes "10 6"; ﬁ becomes fi; soft hyphens are
    removed.
    """
    text = text.casefold().translate(SIGNS)
    if not text.isascii():
        text = AFTER_DIGIT.sub(
            " ",
            OTHER_DIGIT.sub(
                lambda found: str(unicodedata.decimal(found[0])), INVISIBLE.sub("", text)
            ),
        )
    if "^" in text or not text.isascii():
        text = AFTER_LETTER.sub(SEAM, text)
    text = GROUPED.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    return text if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """Return the words of a text as they are indexed.

    Scripts without spaces give each character and each pair.
    """
    return list(_words(text, single=True))


def asked(text: str, parts: bool = True) -> list[str]:
    """Return the words of a query.

    Scripts without spaces give the pairs, or a character that stands alone. parts: whether a word
    with a seam (km², or one with a zero-width non-joiner) also gives its parts.
    """
    return list(_words(text, single=False, parts=parts))


def _words(text: str, single: bool, parts: bool = True) -> Iterator[str]:
    text = OWNER.sub("", plain(text))
    if text.isascii():
        yield from (token[:LONGEST] for token in ASCII_WORD.findall(text))
        return
    text = unicodedata.normalize("NFKD", text).replace(BREVE, "\u0439")
    text = unicodedata.normalize("NFKC", ACCENTS.sub("", text).translate(LETTERS))
    word, unspaced, character = _patterns()
    for token in word.findall(text):
        if token.isascii():
            yield token[:LONGEST]
            continue
        for number, part in enumerate(unspaced.split(token)):
            if number % 2:
                units = character.findall(part.replace(SEAM, ""))
                yield from units if single or len(units) == 1 else ()
                yield from map("".join, itertools.pairwise(units))
            elif whole := part.replace(SEAM, ""):
                yield whole[:LONGEST]
                yield from (
                    piece[:LONGEST]
                    for piece in part.split(SEAM)
                    if parts and piece and piece != whole
                )


@functools.cache
def _patterns() -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    r"""Compile patterns of a word, an unspaced part of it and a character of such a part.

    To Python's \w a vowel sign of Hindi is not a letter.
    """
    marks = "".join(chr(c) for c in range(0x300, 0x1FFFF) if unicodedata.category(chr(c))[0] == "M")
    inner = f"{marks}{SEAM}"
    return (
        re.compile(rf"{NUMBER}|\w+(?:[{inner}]+\w*)*"),
        re.compile(f"([{UNSPACED}](?:[{UNSPACED}{inner}])*)"),
        re.compile(f"[{UNSPACED}][{marks}]*|[{marks}]+"),
    )
