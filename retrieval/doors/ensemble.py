"""Ensembles: each passage has a prompt of its own, and the predictions are mixed.

REPLUG (Shi et al. 2023, section 3) and RAG-Token (Lewis et al. 2020, section 2.1) mix the
probabilities of every next token; RAG-Sequence those of whole answers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from retrieval.doors.door import Asked, Door, Input, shares
from retrieval.doors.in_context import beside, reads_apart
from retrieval.doors.prompt import build_prompt
from retrieval.errors import RetrievalError
from retrieval.passages import Hit


@dataclasses.dataclass(frozen=True)
class Ensemble(Door):
    """temperature: passages are weighted by softmax(score / temperature)."""

    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        number = isinstance(self.temperature, int | float) and not isinstance(
            self.temperature, bool
        )
        if not number or not 0 < self.temperature < math.inf:
            raise RetrievalError(
                f"--door={self.name},temperature={self.temperature!r}: expected a number above 0"
            )

    def question(self, reader, asked: Asked, room: int) -> Input:
        build = lambda hits: build_prompt(
            reader.tokenizer, asked.question, hits, room, encoder=reads_apart(reader)
        )
        each = [build([hit]) for hit in asked.hits]
        rows = [(prompt.tokens, hit, prompt.cut) for prompt in each for hit in prompt.shown]
        return self._mixed(rows, build(()).tokens)

    def passage(self, reader, hits: Sequence[Hit], context: list[int], room: int) -> Input:
        each = [beside(reader, [hit], context, room) for hit in hits]
        rows = [(row, hit, cut) for row, shown, cut in each for hit in shown]
        return self._mixed(rows, beside(reader, (), context, room)[0])

    def _mixed(self, rows: list[tuple[list[int], Hit, int]], alone: list[int]) -> Input:
        """One row for each passage; only `alone` if there are none."""
        if not rows:
            return Input((alone,))
        tokens, hits, cut = zip(*rows, strict=True)
        return Input(tokens, shares(hits, self.temperature), shown=hits, cut=sum(cut))


@dataclasses.dataclass(frozen=True)
class Replug(Ensemble):
    """Mix next-token probabilities by the passages' cosines (Shi et al. 2023, equation 2)."""

    name: ClassVar[str] = "replug"


@dataclasses.dataclass(frozen=True)
class RagToken(Ensemble):
    """Mix next-token probabilities (Lewis et al. 2020). Scores are cosines, so that they are
    sharpened: the inner products that RAG was trained with differ by more."""

    temperature: float = 0.1

    name: ClassVar[str] = "rag_token"


@dataclasses.dataclass(frozen=True)
class RagSequence(Ensemble):
    """Mix the probabilities of whole answers (Lewis et al. 2020, section 2.5).

    The candidates are the greedy answers to each passage. Thorough decoding scores every candidate
    with every passage; fast decoding with the passages that gave it.
    """

    temperature: float = 0.1
    fast: bool = False

    name: ClassVar[str] = "rag_sequence"
    whole: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.fast, bool):
            raise RetrievalError(f"--door=rag_sequence,fast={self.fast!r}: expected True or False")
