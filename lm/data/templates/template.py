"""Template: code that spells a record out as segments of text, each with a loss or without one."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from lm.data.examples import Demonstration, Example, Record, Segment, Turn
from lm.data.sources import DataError

VERSION = 1  # of how templates spell; part of their fingerprint


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt, and how an answer (a text, or a turn with fields) is spelled after it. cut: tokens left out of the prompt's end."""

    segments: tuple[Segment, ...]
    respond: Callable[[Any], tuple[Segment, ...]]
    cut: int = 0


@dataclasses.dataclass(frozen=True)
class Template:
    """ask: (record without its answer, index) -> Asked; what it draws, it draws from the options' seed and the record's index.

    options: all that changes what it spells.   stop: text of the control token that ends an answer.   source: further text that
    defines it, such as a Jinja template.   fields: whether it has a place for tools and for what turns hold besides a text.
    """

    name: str
    options: Mapping[str, Any]
    stop: str
    ask: Callable[[Record, int], Asked]
    source: str = ""
    fields: bool = False

    def render(self, record: Record, index: int = 0) -> Example:
        """The record with its answer, for training; its prompt is `prompt` of the same record and index.

        Raises DataError, naming the record's source, when the template has no place for what the record holds, the answer is empty, or
        its end is not trained.
        """
        question, answer = divided(record)
        turn = record.turns[-1] if record.turns else Turn("assistant", answer)
        if not answer.strip() and not turn.fields.get("tool_calls"):
            raise _refused(
                record,
                "the response is empty; remove the record, or raise data.max_bad_share to leave such records out",
            )
        asked = self._asked(question, index, turn.fields)
        response = self._said(record, lambda: asked.respond(turn if turn.fields else answer))
        trained = [segment for segment in response if segment.trained]
        if not trained or not trained[-1].control or not trained[-1].text.endswith(self.stop):
            raise _refused(
                record,
                f"template {self.name!r} does not train the token that ends the response ({self.stop!r})",
            )
        return Example(
            asked.segments + response, record.references or (answer,), record.task, asked.cut
        )

    def prompt(self, record: Record, index: int = 0) -> Example:
        """The record without its answer, as generation is given it."""
        question, answer = divided(record)
        asked = self._asked(question, index)
        references = record.references or ((answer,) if answer else ())
        return Example(asked.segments, references, record.task, asked.cut, unanswered=True)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the name, the options and what the template makes of a few records."""
        spelled = [
            [dataclasses.astuple(segment) for segment in self._probe(record)] for record in _PROBES
        ]
        options = {
            name: value for name, value in sorted(self.options.items()) if name != "date"
        }  # it shows in what is spelled
        identity = [VERSION, self.name, options, self.stop, self.source, spelled]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def _probe(self, record: Record) -> tuple[Segment, ...]:
        try:
            return self.render(record).segments
        except DataError:
            return ()

    def _asked(
        self, question: Record, index: int, answer: Mapping[str, Any] | None = None
    ) -> Asked:
        found = [
            (f"turn {n} has", name)
            for n, turn in enumerate(question.turns, 1)
            for name in turn.fields
        ]
        found += [("the answer has", name) for name in answer or ()] + [
            ("the record has", "tools")
        ] * bool(question.tools)
        if found and not self.fields:
            raise _refused(
                question,
                f"template {self.name!r}: {found[0][0]} {found[0][1]!r}, for which it has no place; use data.template='jinja' with a "
                "chat template that renders it, or remove the field",
            )
        return self._said(question, lambda: self.ask(question, index))

    def _said(self, record: Record, spell: Callable[[], Any]) -> Any:
        try:
            return spell()
        except DataError as error:
            raise _refused(record, f"template {self.name!r}: {error}") from None


def divided(record: Record) -> tuple[Record, str]:
    """(the record without its answer, the answer or "")."""
    if not record.turns:
        return dataclasses.replace(record, output=""), record.output
    if record.turns[-1].role != "assistant":
        return record, ""
    return dataclasses.replace(record, turns=record.turns[:-1]), record.turns[-1].text


def as_turns(question: Record) -> tuple[Turn, ...]:
    """The turns of a conversation; an instruction and its input, with an empty line between them, are what its user says."""
    if question.turns:
        return question.turns
    return (Turn("user", whole_prompt(question)),)


def as_task(question: Record) -> Record:
    """An instruction with its input; a conversation is one when a user's message is all there is before the answer."""
    if not question.turns:
        return question
    roles = [turn.role for turn in question.turns]
    if roles != ["user"]:
        raise DataError(
            f"it has no place for turns of {', '.join(roles)} before the answer; use a chat template such as 'chatml'"
        )
    return dataclasses.replace(question, instruction=question.turns[0].text, turns=())


def whole_prompt(question: Record) -> str:
    """Instruction and input as one text, with an empty line between them."""
    return "\n\n".join(filter(None, (question.instruction, question.input)))


def answered(
    stop: str, before: str = "", after: str = "", tail: str = ""
) -> Callable[[str], tuple[Segment, ...]]:
    """How an answer is spelled: `before`, it and `after` are trained, then the token `stop`; `tail` follows untrained."""

    def respond(answer: str) -> tuple[Segment, ...]:
        end = (
            Segment(stop, True, control=True),
            *([Segment(tail, False, control=True)] if tail else []),
        )
        return (Segment(f"{before}{answer}{after}", True), *end)

    return respond


def _refused(record: Record, reason: str) -> DataError:
    return DataError(f"{record.source}: {reason}" if record.source else reason)


_PROBES = (
    Record(instruction=" Say it. ", input="once\n", output=" it "),
    Record(
        instruction="Say it",
        output="it",
        positive=tuple(Demonstration(x, x, x) for x in "abc"),
        negative=(Demonstration("d", "e", "f"),),
    ),
    Record(turns=(Turn("user", " a "), Turn("assistant", " b "))),
    Record(
        turns=(
            Turn("system", "s"),
            Turn("user", "a"),
            Turn("assistant", "b"),
            Turn("user", "c"),
            Turn("assistant", "d"),
        )
    ),
)
