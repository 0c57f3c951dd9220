"""Calls of a fact memory within a text: [[ entity | relation -> value ]].

A call stands before the place where a text needs the value (LMLM, Zhao et al. 2025, section 3). The
model writes it up to the arrow; the memory gives the value and the end. The parts are tokenised
apart, so that the marks are the same tokens everywhere.
"""

from collections.abc import Sequence

from retrieval.sanitising import encode_plain, one_line

OPEN, BETWEEN, GIVES, CLOSE = " [[", " |", " ->", " ]]"
MARKS = ("[[", "]]", "->", "|")  # what no name or value may contain
UNKNOWN = "unknown"


def asked(tokenizer, entity: str, relation: str) -> list[int]:
    """Tokens of a call up to its arrow."""
    parts = (OPEN, f" {entity}", BETWEEN, f" {relation}", GIVES)
    return [id for part in parts for id in encode_plain(tokenizer, part)]


def given(tokenizer, value: str) -> list[int]:
    """Tokens of a value and of the call's end."""
    return [*encode_plain(tokenizer, f" {value}"), *encode_plain(tokenizer, CLOSE)]


def pending(tokenizer, tokens: Sequence[int]) -> tuple[int, str, str] | None:
    """The call whose value is being given: (tokens up to its arrow, entity, relation), or None."""
    ids = list(tokens)
    opened, arrow, closed = (_last(ids, encode_plain(tokenizer, m)) for m in (OPEN, GIVES, CLOSE))
    if opened < 0 or arrow < opened or closed > arrow:
        return None
    end = arrow + len(encode_plain(tokenizer, GIVES))
    inside = ids[opened + len(encode_plain(tokenizer, OPEN)) : arrow]
    entity, between, relation = tokenizer.decode(inside).partition(BETWEEN.strip())
    if not between:
        return None
    return end, one_line(entity), one_line(relation)


def _last(ids: list[int], part: list[int]) -> int:
    """Where `part` last begins in `ids`; -1 if it is not there."""
    starts = range(len(ids) - len(part), -1, -1)
    return next((at for at in starts if ids[at : at + len(part)] == part), -1)
