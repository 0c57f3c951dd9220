"""Few-shot prompts of any template (Wei et al. 2022, arXiv 2109.01652, section 4.4)."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from lm.data.records.examples import Demonstration, Record, Segment, Turn
from lm.data.templates.template import Asked, Template, as_turns
from lm.models.config import ConfigError

BETWEEN = "\n\n"  # after the answer of an example, in templates without turns


def few_shot(template: Template, shots: int) -> Template:
    """Add up to `shots` of a record's positive examples before the question, untrained.

    They are rendered by the same template: as earlier turns in a chat, else as text with an empty
    line after each. Raises ConfigError.
    """
    if shots < 0:
        raise ConfigError(f"task.shots={shots}: expected 0 or more")
    if not shots:
        return template
    if "positive" in template.options:
        raise ConfigError(
            f"task.shots={shots}: template {template.name!r} has its own; set "
            f"task.{template.name}.positive instead"
        )
    chat = "turns" in template.options

    def ask(question: Record, index: int) -> Asked:
        shown = [
            (
                dataclasses.replace(
                    question,
                    instruction=d.instruction or question.instruction,
                    input=d.input,
                    positive=(),
                ),
                d.output,
            )
            for d in question.positive[:shots]
        ]
        if not shown:
            return template.ask(question, index)
        if chat:
            turns = [
                turn
                for solved, answer in shown
                for turn in (*as_turns(solved), Turn("assistant", answer))
            ]
            asked = template.ask(
                dataclasses.replace(question, turns=(*turns, *as_turns(question))), index
            )
            before = ()
        else:
            asked = template.ask(question, index)
            spelled = [(template.ask(solved, index), answer) for solved, answer in shown]
            before = [
                s
                for a, answer in spelled
                for s in (*a.segments, *_text(a, answer), Segment(BETWEEN, False, control=True))
            ]
        return Asked(
            tuple(dataclasses.replace(s, trained=False) for s in (*before, *asked.segments)),
            asked.respond,
            asked.cut,
        )

    return dataclasses.replace(template, options={**template.options, "shots": shots}, ask=ask)


def _text(asked: Asked, answer: str) -> list[Segment]:
    return [segment for segment in asked.respond(answer) if segment.trained and not segment.control]


def with_examples(records: Sequence[Record], template: Template) -> Sequence[Record]:
    """Give records without examples others of their task, if the template shows examples.

    The choice is seeded by the record's index.
    """
    shots = template.options.get("shots", 0)
    tasks: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records if shots else ():
        if not record.turns:
            tasks[record.task].append(record)
    return (
        [_shown(record, tasks[record.task], shots, i) for i, record in enumerate(records)]
        if shots
        else records
    )


def _shown(record: Record, others: list[Record], shots: int, place: int) -> Record:
    if record.turns or record.positive:
        return record
    drawn = np.random.default_rng(place).choice(
        len(others), min(shots + 1, len(others)), replace=False
    )
    apart = [
        others[i]
        for i in drawn
        if (others[i].instruction, others[i].input) != (record.instruction, record.input)
    ]
    return dataclasses.replace(
        record,
        positive=tuple(
            Demonstration(other.input, other.output, instruction=other.instruction)
            for other in apart[:shots]
        ),
    )
