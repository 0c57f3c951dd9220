"""PDF text in reading order: columns, glyphs as letters, hyphenated words rejoined."""

import collections
import itertools
import re
import unicodedata
from typing import NamedTuple

FORMS = re.compile(r"[\ufb00-\ufb4f\ufb50-\ufdff\ufe70-\ufefc]+")  # ligatures, presentation forms
BROKEN = re.compile(r"([^\W\d_]+)[-\u2010\u00ad][ \t]*\n[ \t]*([^\W\d_]+)")  # hyphenated word
COMPOUND = frozenset(  # prefixes that keep their hyphen if the text gives no evidence
    [
        "all",
        "co",
        "cross",
        "ex",
        "half",
        "high",
        "long",
        "low",
        "multi",
        "non",
        "pre",
        "post",
        "self",
        "semi",
        "short",
        "sub",
        "well",
    ]
)
ROWS = 6  # least number of lines that two columns share
PROSE = 18  # least mean length of a line; shorter ones are table cells, read by rows


class Piece(NamedTuple):
    """Text at (x, y) of a page, in points from the lower left.

    order: its position in the page's content.
    """

    x: float
    y: float
    text: str
    order: int


def page_text(page) -> str:
    """Return the text of a pypdf page.

    Two columns of prose whose lines alternate in the file are read one after the other.
    """
    pieces: list[Piece] = []

    def note(text: str, cm, tm, font, size) -> None:
        if text.strip():
            x, y = (cm[i] * tm[4] + cm[i + 2] * tm[5] + cm[i + 4] for i in (0, 1))
            pieces.append(Piece(x, y, text.strip(), len(pieces)))

    text = page.extract_text(visitor_text=note)
    return FORMS.sub(_spelled, in_columns(pieces) or text)


def in_columns(pieces: list[Piece]) -> str:
    """Return the lines of a page, left column first.

    "" unless the lines of two columns of prose alternate.
    """
    if len(pieces) < 2 * ROWS:
        return ""
    starts = collections.Counter(round(piece.x) for piece in pieces)
    (one, often), (other, less) = (*starts.most_common(2), (0, 0))[:2]
    left, right = sorted((one, other))
    if less < ROWS or right - left < 100 or often + less < 0.8 * len(pieces):
        return ""
    lines = {side: {round(p.y): p for p in pieces if round(p.x) == side} for side in (left, right)}
    shared = sorted(lines[left].keys() & lines[right].keys(), reverse=True)
    pairs = [(lines[left][y], lines[right][y]) for y in shared]
    ordered = [piece.order for pair in pairs for piece in pair]
    mean = min(sum(len(pair[side].text) for pair in pairs) / max(1, len(pairs)) for side in (0, 1))
    if len(pairs) < ROWS or ordered != sorted(ordered) or mean < PROSE:
        return ""
    between = [piece for piece in pieces if shared[-1] <= round(piece.y) <= shared[0]]
    column = lambda piece: round(piece.x) >= right
    above = [piece for piece in pieces if round(piece.y) > shared[0] and piece.order < ordered[0]]
    rest = [piece for piece in pieces if piece not in between and piece not in above]
    body = sorted(
        between + [p for p in rest if round(p.x) in (left, right)],
        key=lambda piece: (column(piece), piece.order),
    )
    below = [piece for piece in rest if round(piece.x) not in (left, right)]
    return "\n".join(piece.text for piece in itertools.chain(above, body, below))


def unbroken(pages: list[str]) -> list[str]:
    """Rejoin words that were hyphenated at line ends.

    The hyphen stays where the text has the hyphenated word elsewhere, before a capital, and after
    prefixes such as "self".
    """
    held = set(
        re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", " ".join(pages).lower().replace("\u2010", "-"))
    )

    def whole(found: re.Match) -> str:
        first, second = found[1], found[2]
        hyphened = f"{first}-{second}"
        if "\u00ad" in found[0] or f"{first}{second}".lower() in held:
            return first + second
        keep = (
            hyphened.lower() in held
            or second[0].isupper()
            or first.lower() in COMPOUND
            or len(first) == 1
        )
        return hyphened if keep else first + second

    return [BROKEN.sub(whole, page).replace("\u00ad", "") for page in pages]


def _spelled(found: re.Match) -> str:
    return unicodedata.normalize("NFKC", found[0])
