"""In-context retrieval: passages are put before the question or the text (Ram et al. 2023)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from lm.data.encode.encoding import affixes
from retrieval.doors.door import KINDS, Asked, Door, Input
from retrieval.doors.prompt import Prompt, before_text, build_prompt
from retrieval.passages import Hit

__all__ = ["IN_CONTEXT", "InContext", "Prompt", "build_prompt", "close_to_the_best"]

# Cosine below the best at which passages are not shown: a small reader takes them for the answer.
MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class InContext(Door):
    """All passages in one prompt, those near the best score (In-Context RALM)."""

    name: ClassVar[str] = "in_context"
    kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)

    def question(self, reader, asked: Asked, room: int) -> Input:
        prompt = build_prompt(
            reader.tokenizer,
            asked.question,
            close_to_the_best(asked.hits),
            room,
            encoder=reads_apart(reader),
        )
        return Input((prompt.tokens,), shown=prompt.shown, cut=prompt.cut)

    def passage(self, reader, hits: Sequence[Hit], context: list[int], room: int) -> Input:
        row, shown, cut = beside(reader, close_to_the_best(hits), context, room)
        return Input((row,), shown=shown, cut=cut)


IN_CONTEXT = InContext()


def close_to_the_best(hits: Sequence[Hit], margin: float = MARGIN) -> list[Hit]:
    """Return the hits within `margin` of the best score."""
    return [hit for hit in hits if hit.score >= hits[0].score - margin]


def reads_apart(reader) -> bool:
    """Whether an encoder reads the prompt, and a decoder writes the answer."""
    return getattr(reader, "kind", "decoder") == "encoder-decoder"


def beside(
    reader, hits: Sequence[Hit], context: list[int], room: int
) -> tuple[list[int], tuple[Hit, ...], int]:
    """Passages before a text: (tokens of a row, passages shown, tokens cut from these).

    At most half of the row is passages; the context keeps its end.
    """
    start, end = affixes(reader.tokenizer)
    end = end if reads_apart(reader) else []
    room -= len(start) + len(end)
    read, shown, cut = before_text(reader.tokenizer, hits, room // 2)
    return [*start, *read, *context[-max(1, room - len(read)) :], *end], shown, cut
