"""Splitting texts for highlighting: what supports an answer, what an edit changed, sources."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

from retrieval.reading.explaining import SHOWN, Told

AROUND = 240  # characters shown on each side of a marked sentence
MAX_WORDS = 5_000  # of two texts together; longer ones are not compared (quadratic time)


def marked(text: str, sentence: str) -> tuple[str, str, str]:
    """Split a text into (before, sentence, after), shortening the outer parts."""
    before, found, after = text.partition(sentence)
    if len(before) > AROUND:
        before = "… " + before[-AROUND:].partition(" ")[2]
    if len(after) > AROUND:
        after = after[:AROUND].rpartition(" ")[0] + " …"
    return before, found, after


def changes(before: str, after: str) -> list[tuple[str, str]]:
    """Return the word diff of two texts: [("same" | "out" | "in", text)]."""
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    if not old or len(old) + len(new) > MAX_WORDS:
        return [("same", after)]
    parts = []
    for what, i, j, k, n in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            parts.append(("same", "".join(new[k:n])))
        else:
            parts += [
                (kind, "".join(words))
                for kind, words in (("out", old[i:j]), ("in", new[k:n]))
                if words
            ]
    return parts


@dataclasses.dataclass(frozen=True)
class Coloured:
    """A token of an answer. passage: its heaviest source, "" without any.

    colour: number of the passage, from 0. strength: 0 to 4, by the memory's part of the token's
    probability. said: its sources in words.
    """

    text: str
    passage: str
    colour: int
    strength: int
    said: str


def coloured(tokens: Sequence[Told], colours: int = 6) -> list[Coloured]:
    """Colour tokens by their heaviest source; passages are numbered as they first appear."""
    numbers: dict[str, int] = {}
    found = []
    for token in tokens:
        of = token.share / token.probability if token.probability else 0.0
        said = f"probability {token.probability:.3f}, {min(of, 1):.0%} of it from the memory"
        for source in token.sources[:SHOWN]:
            said += f"\n{source.passage}, token {source.offset}: {source.weight:.3f}"
        if len(token.sources) > SHOWN:
            said += f"\nand {len(token.sources) - SHOWN} more"
        passage = token.sources[0].passage if token.sources else ""
        number = numbers.setdefault(passage, len(numbers)) % colours if passage else 0
        strength = min(4, 1 + int(4 * of)) if passage else 0
        found.append(Coloured(token.text, passage, number, strength, said))
    return found
