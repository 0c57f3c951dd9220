"""Fusion in decoder: passages are encoded apart, and the decoder reads all of them.

Izacard & Grave 2021, section 3: each passage is encoded with the question and its title.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from lm.data.encode.encoding import affixes
from retrieval.doors.door import Asked, Door, Input
from retrieval.doors.in_context import beside
from retrieval.doors.prompt import markers
from retrieval.errors import RetrievalError
from retrieval.passages import Hit
from retrieval.sanitising import encode_foreign, encode_plain, one_line


@dataclasses.dataclass(frozen=True)
class FusionInDecoder(Door):
    """tokens: of the question and a passage, which is cut to it."""

    tokens: int = 250

    name: ClassVar[str] = "fid"
    kinds: ClassVar[tuple[str, ...]] = ("encoder-decoder",)

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:
            raise RetrievalError(
                f"--door=fid,tokens={self.tokens!r}: expected a whole number above 0"
            )

    def question(self, reader, asked: Asked, room: int) -> Input:
        tokenizer, room = reader.tokenizer, min(room, self.tokens)
        if not isinstance(asked.question, str) or not asked.question.strip():
            raise RetrievalError(f"the question is {asked.question!r}: expected some text")
        start, end = affixes(tokenizer)
        head = [*start, *encode_plain(tokenizer, f"question: {one_line(asked.question)}")]
        left = room - len(head) - len(end)
        if left < (1 if asked.hits else 0):
            raise RetrievalError(
                f"the question {one_line(asked.question)[:40]!r}... takes {len(head):,} tokens, "
                f"and a passage and its question {room:,}: ask a shorter one"
            )
        known, rows, cut = markers(tokenizer), [], 0
        for hit in asked.hits:
            title = f" title: {one_line(hit.title)}" if hit.title else ""
            text = f"{title} context: {one_line(hit.text)}"
            cut += max(0, len(encode_plain(tokenizer, text)) - left)
            rows.append([*head, *encode_foreign(tokenizer, text, known, left), *end])
        return apart(rows or [[*head, *end]], asked.hits, cut)

    def passage(self, reader, hits: Sequence[Hit], context: list[int], room: int) -> Input:
        each = [beside(reader, [hit], context, room) for hit in hits]
        shown = tuple(hit for _, hits, _ in each for hit in hits)
        rows = [row for row, hits, _ in each if hits] or [beside(reader, (), context, room)[0]]
        return apart(rows, shown, sum(cut for *_, cut in each))


def apart(rows: list[list[int]], shown: tuple[Hit, ...], cut: int) -> Input:
    """One row of passages that do not see each other."""
    numbers = tuple(i for i, row in enumerate(rows, 1) for _ in row)
    return Input(([token for row in rows for token in row],), (0.0,), numbers, shown, cut)
