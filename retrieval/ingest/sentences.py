"""Where a text may be cut: the spans of its paragraphs, sentences, lines and words. All spans are without whitespace at their ends."""

import re

Span = tuple[int, int]

NO_END = {
    "al", "approx", "bzw", "ca", "cf", "ch", "co", "corp", "dept", "dr", "ed", "eds", "eq", "esp", "etc", "fig", "figs", "gen", "gov",
    "inc",     "jr", "ltd", "mr", "mrs", "ms", "mt", "nr", "no", "op", "pp", "prof", "ref", "rev", "sec", "sen", "sgt", "sr", "st",
    "vol", "vs",
}  # fmt: skip
PARAGRAPH = re.compile(r"\n[ \t]*\n")
LINE = re.compile(r"\n")
WORD = re.compile(r"\S+")
LAST_WORD = re.compile(r"[\w.]+$")
CLOSE = "\"'”’»)\\]」』）》〉"
END = re.compile(
    rf"(?<![.!?…])[.!?…]++[{CLOSE}]*+(?=\s)"  # a stop, with what closes after it; a row of stops is looked at once
    rf"|[。｡！？；．︒‼⁇⁈⁉।॥؟۔։።፧፨။។៕།༎᠃᠉෴]+[{CLOSE}]*"  # stops after which no space is due: of CJK, Indic, Arabic, Armenian, Ethiopic ...
    rf"|…+[{CLOSE}]*(?=[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3])"
    r"|\u037e|(?<=[\u0370-\u03ff\u1f00-\u1fff]);(?=\s)"  # the Greek question mark
    r"|(?<=[\u0e01-\u0e5b\u0e81-\u0eff])[ \u00a0]+(?=[\u0e01-\u0e5b\u0e81-\u0eff])"  # Thai and Lao end them with a space
    r"|\n(?=[ \t]*\n)"  # a paragraph's end
    r"|\n(?=[ \t]*(?:[-*+•|]|\d+[.)])[ \t])"  # an item of a list, a row of a table
)


def paragraphs(text: str, start: int, end: int) -> list[Span]:
    """What blank lines divide."""
    return _between(
        text, start, end, (found.start() for found in PARAGRAPH.finditer(text, start, end))
    )


def sentences(text: str, start: int, end: int) -> list[Span]:
    """By stops, but not those of common abbreviations, initials, numbered items, or before a small letter; by paragraphs and items too."""
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
    """So many characters that they cannot be more than `room` tokens: of bytes at worst, up to four of which make a character."""
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
