"""Spans of paragraphs, sentences, lines and words, without white space at their ends."""

import re

Span = tuple[int, int]

NO_END = {
    "al",
    "approx",
    "bzw",
    "ca",
    "cf",
    "ch",
    "co",
    "corp",
    "dept",
    "dr",
    "ed",
    "eds",
    "eq",
    "esp",
    "etc",
    "fig",
    "figs",
    "gen",
    "gov",
    "inc",
    "jr",
    "ltd",
    "mr",
    "mrs",
    "ms",
    "mt",
    "nr",
    "no",
    "op",
    "pp",
    "prof",
    "ref",
    "rev",
    "sec",
    "sen",
    "sgt",
    "sr",
    "st",
    "vol",
    "vs",
}
PARAGRAPH = re.compile(r"\n[ \t]*\n")
LINE = re.compile(r"\n")
WORD = re.compile(r"\S+")
LAST_WORD = re.compile(r"[\w.]+$")
CLOSE = "\"'”’»)\\]」』）》〉"
END = re.compile(
    # Stops and closing quotes; a run of stops is scanned once.
    rf"(?<![.!?…])[.!?…]++[{CLOSE}]*+(?=\s)"
    # Stops without a following space: CJK, Indic, Arabic, Armenian, Ethiopic and others.
    rf"|[。｡！？；．︒‼⁇⁈⁉।॥؟۔։።፧፨။។៕།༎᠃᠉෴]+[{CLOSE}]*"
    rf"|…+[{CLOSE}]*(?=[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3])"
    r"|\u037e|(?<=[\u0370-\u03ff\u1f00-\u1fff]);(?=\s)"  # the Greek question mark
    # Thai and Lao end sentences with a space.
    r"|(?<=[\u0e01-\u0e5b\u0e81-\u0eff])[ \u00a0]+(?=[\u0e01-\u0e5b\u0e81-\u0eff])"
    r"|\n(?=[ \t]*\n)"  # end of a paragraph
    r"|\n(?=[ \t]*(?:[-*+•|]|\d+[.)])[ \t])"  # list item or table row
)


def paragraphs(text: str, start: int, end: int) -> list[Span]:
    """Split at blank lines."""
    return _between(
        text, start, end, (found.start() for found in PARAGRAPH.finditer(text, start, end))
    )


def sentences(text: str, start: int, end: int) -> list[Span]:
    """Split at sentence ends, paragraphs and list items.

    A full stop does not end a sentence after a common abbreviation, an initial or an item number,
    or before a lower-case letter.
    """
    return _between(
        text,
        start,
        end,
        (found.end() for found in END.finditer(text, start, end) if _ends(text, found, start, end)),
    )


def lines(text: str, start: int, end: int) -> list[Span]:
    return _between(text, start, end, (found.start() for found in LINE.finditer(text, start, end)))


def words(text: str, start: int, end: int) -> list[Span]:
    return [found.span() for found in WORD.finditer(text, start, end)]


def pieces(text: str, start: int, end: int, room: int) -> list[Span]:
    """Cut into pieces of at most `room` tokens.

    A token is at worst one byte, and a character has up to four bytes.
    """
    size = max(1, room // 4)
    return [(at, min(at + size, end)) for at in range(start, end, size)]


def _between(text: str, start: int, end: int, borders) -> list[Span]:
    spans = []
    for border in (*borders, end):
        part = text[start:border]
        left = len(part) - len(part.lstrip())
        if left < len(part):
            spans.append((start + left, start + len(part.rstrip())))
        start = border
    return spans


def _ends(text: str, found: re.Match, start: int, end: int) -> bool:
    if found[0] != ".":
        return True
    following = re.compile(r"\s+(\S)").match(text, found.end(), end)
    if following and following[1].islower():
        return False
    last = LAST_WORD.search(text, max(start, found.start() - 12), found.start())
    word = last[0] if last else ""
    initial = len(word) == 1 and word.isalpha() and word != "I"
    numbered = word.isdecimal() and (
        found.start() - len(word) == start or text[found.start() - len(word) - 1] == "\n"
    )
    return not (word.lower() in NO_END or initial or numbered or re.fullmatch(r"(?:\w\.)+\w", word))
