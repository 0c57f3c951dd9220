"""When to retrieve: questions that are answered from the weights, without passages."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from retrieval.doors.door import KINDS, WRITERS, Asked, Door, parsed
from retrieval.doors.running import generated, request
from retrieval.errors import RetrievalError

HOMES = {
    "confidence": "retrieval.reading.when:Confidence",
    "popularity": "retrieval.reading.when:Popularity",
}
MOST = 1000  # passages that are counted for one question


@dataclasses.dataclass(frozen=True)
class Draft:
    """A question with its closed-book answer.

    confidence: geometric mean of the probabilities of the answer's tokens. record: the row of a
    question file, if it came from one.
    """

    question: str
    text: str
    confidence: float
    record: Mapping = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class When(abc.ABC):
    """Decides which questions passages are read for. Derive a frozen dataclass.

    below: passages are read where the measure is less than this.
    """

    below: float = 0.0

    name: ClassVar[str] = ""

    def __post_init__(self):
        number = isinstance(self.below, int | float) and not isinstance(self.below, bool)
        if not number or not math.isfinite(self.below):
            raise RetrievalError(
                f"--when={self.name},below={self.below!r}: expected a number, below which the "
                "memory is read"
            )

    @abc.abstractmethod
    def measures(self, drafts: Sequence[Draft], memory: Any) -> list[float]:
        """The measure of each question. memory: what is searched, see `answering.Searchable`."""

    def read(self, measures: Sequence[float]) -> list[bool]:
        """Whether passages are read for each question."""
        return [value < self.below for value in measures]


@dataclasses.dataclass(frozen=True)
class Confidence(When):
    """The likelihood of the closed-book answer, per token (as in FLARE, Jiang et al. 2023)."""

    below: float = 0.5

    name: ClassVar[str] = "confidence"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.below <= 1:
            raise RetrievalError(
                f"--when=confidence,below={self.below!r}: expected a probability, 0 to 1"
            )

    def measures(self, drafts: Sequence[Draft], memory: Any) -> list[float]:
        return [draft.confidence for draft in drafts]


@dataclasses.dataclass(frozen=True)
class Popularity(When):
    """How well known a question's entity is (adaptive retrieval, Mallen et al. 2023).

    field: a number of the question's record, or else of the metadata of its best passage. Without
    it, the passages that name the title of the best passage are counted, up to MOST.
    """

    below: float = 10
    field: str = ""

    name: ClassVar[str] = "popularity"

    def measures(self, drafts: Sequence[Draft], memory: Any) -> list[float]:
        if self.field and all(self.field in draft.record for draft in drafts):
            return [self._number(draft.record[self.field], draft) for draft in drafts]
        found = memory.search([draft.question for draft in drafts], 1)
        if self.field:
            return [
                self._number(hits[0].metadata.get(self.field), draft) if hits else 0.0
                for hits, draft in zip(found, drafts, strict=True)
            ]
        titles = [hits[0].title or hits[0].text if hits else "" for hits in found]
        most = int(min(max(self.below, 1), MOST))
        named = memory.search([title or "-" for title in titles], most)
        return [
            float(sum(title in f"{hit.title} {hit.text}" for hit in hits)) if title else 0.0
            for title, hits in zip(titles, named, strict=True)
        ]

    def _number(self, value: Any, draft: Draft) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise RetrievalError(
                f"--when=popularity,field={self.field}: the question {draft.question!r} and its "
                f"best passage have {value!r}; expected a number"
            ) from None


def when_named(text: str) -> When | None:
    """Of "confidence,below=0.8" or "popularity,below=3,field=views"; None of "".

    Raises RetrievalError for an unknown name or option, and for a value out of range.
    """
    return parsed("--when", text, HOMES, When) if text else None


def drafts(
    door: Door,
    reader: Any,
    questions: Sequence[str],
    max_new_tokens: int,
    records: Sequence[Mapping] = (),
    on_batch=None,
) -> list[Draft]:
    """Closed-book answers, with their confidence. Raises RetrievalError for an encoder."""
    if (kind := getattr(reader, "kind", "")) not in WRITERS or not hasattr(reader, "text"):
        raise RetrievalError(
            f"--when: {KINDS.get(kind, 'this reader')} writes no answer without passages, so that "
            "they are always read: leave it out"
        )
    room = reader.prompt_tokens(max_new_tokens)
    inputs = [door.question(reader, Asked(question), room) for question in questions]
    asked = [request(reader, each, [], max_new_tokens) for each in inputs]
    found = generated(reader, asked, on_batch or (lambda number: None))
    rows = list(records) or [{}] * len(questions)
    return [
        Draft(question, reader.text(one.answer), float(np.exp(np.mean(one.log_probs))), row)
        for question, one, row in zip(questions, found, rows, strict=True)
    ]
