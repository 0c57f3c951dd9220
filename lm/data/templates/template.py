"""Template: code that renders a record as segments of text, trained or not."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from lm.data.read.sources import DataError
from lm.data.records.examples import Demonstration, Example, Record, Segment, Turn

VERSION = 1  # of rendering; part of the fingerprint


@dataclasses.dataclass(frozen=True)
class Asked:
    """Prompt, and a function that renders an answer (a text, or a turn with fields) after it.

    cut: tokens removed from the end of the prompt.
    """

    segments: tuple[Segment, ...]
    respond: Callable[[Any], tuple[Segment, ...]]
    cut: int = 0


@dataclasses.dataclass(frozen=True)
class Template:
    """Renderer of records. ask: (record without its answer, index) -> Asked.

    Random choices depend on the seed in the options and on the index alone.
    options: everything that affects the rendering. stop: text of the control token that ends an
    answer. source: further text that defines the template, such as Jinja source. fields: whether it
    supports tools and other fields of turns.
    """

    name: str
    options: Mapping[str, Any]
    stop: str
    ask: Callable[[Record, int], Asked]
    source: str = ""
    fields: bool = False

    def render(self, record: Record, index: int = 0) -> Example:
        """Render a record with its answer, for training. The prompt is the same as `prompt` gives.

        Raises DataError, naming the record's source, when the template does not support a field of
        the record, the answer is empty, or the end of the answer is not trained.
        """
        question, answer = divided(record)
        turn = record.turns[-1] if record.turns else Turn("assistant", answer)
        if not answer.strip() and not turn.fields.get("tool_calls"):
            raise _refused(
                record,
                "the response is empty; remove the record, or raise data.max_bad_share to leave "
                "such records out",
            )
        asked = self._asked(question, index, turn.fields)
        response = self._said(record, lambda: asked.respond(turn if turn.fields else answer))
        trained = [segment for segment in response if segment.trained]
        if not trained or not trained[-1].control or not trained[-1].text.endswith(self.stop):
            raise _refused(
                record,
                f"template {self.name!r} does not train the token that ends the response "
                f"({self.stop!r})",
            )
        return Example(
            asked.segments + response, record.references or (answer,), record.task, asked.cut
        )

    def prompt(self, record: Record, index: int = 0) -> Example:
        """Render a record without its answer, for generation.

        If the template renders earlier turns differently later (most remove their reasoning), they
        cannot all be trained; the prompt is then the one of task.turns='last'.
        """
        question, answer = divided(record)
        try:
            asked = self._asked(question, index)
        except DataError:
            untrained = (dataclasses.replace(turn, trained=False) for turn in question.turns)
            asked = self._asked(dataclasses.replace(question, turns=tuple(untrained)), index)
        references = record.references or ((answer,) if answer else ())
        return Example(asked.segments, references, record.task, asked.cut, unanswered=True)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits: hash of the name, the options and the rendering of a few records."""
        spelled = [
            [dataclasses.astuple(segment) for segment in self._probe(record)] for record in _PROBES
        ]
        options = {
            name: value for name, value in sorted(self.options.items()) if name != "date"
        }  # the date shows in the rendered text
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
                f"template {self.name!r}: {found[0][0]} {found[0][1]!r}, for which it has no "
                "place; use task.template='jinja' with a "
                "chat template that renders it, or remove the field",
            )
        return self._said(question, lambda: self.ask(question, index))

    def _said(self, record: Record, spell: Callable[[], Any]) -> Any:
        try:
            return spell()
        except DataError as error:
            raise _refused(record, f"template {self.name!r}: {error}") from None


def divided(record: Record) -> tuple[Record, str]:
    """(record without its answer, the answer or "")."""
    if not record.turns:
        return dataclasses.replace(record, output=""), record.output
    if record.turns[-1].role != "assistant":
        return record, ""
    return dataclasses.replace(record, turns=record.turns[:-1]), record.turns[-1].text


def as_turns(question: Record) -> tuple[Turn, ...]:
    """Turns of a conversation; an instruction with its input becomes one user turn."""
    if question.turns:
        return question.turns
    return (Turn("user", whole_prompt(question)),)


def as_task(question: Record) -> Record:
    """Record as an instruction and input; a conversation must be a single user turn."""
    if not question.turns:
        return question
    roles = [turn.role for turn in question.turns]
    if roles != ["user"]:
        raise DataError(
            f"it has no place for turns of {', '.join(roles)} before the answer; use a chat "
            "template such as 'chatml'"
        )
    return dataclasses.replace(question, instruction=question.turns[0].text, turns=())


def whole_prompt(question: Record) -> str:
    """Instruction and input as one text, with an empty line between them."""
    return "\n\n".join(filter(None, (question.instruction, question.input)))


def answered(
    stop: str, before: str = "", after: str = "", tail: str = ""
) -> Callable[[str], tuple[Segment, ...]]:
    """Function that renders an answer: `before`, the answer, `after` and `stop`, all trained.

    An untrained `tail` follows.
    """

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
