"""Splitting texts for highlighting: what supports an answer, what an edit changed."""

import difflib
import re

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
