"""Examples: what instruct data becomes. A record is what a file says; an example is a record as a template spells it out."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of text. trained: it carries a loss.

    control: it is the template's own, so control tokens spelled out in it are those tokens; in a user's text they stay text.
    """

    text: str
    trained: bool
    control: bool = False


@dataclasses.dataclass(frozen=True)
class Example:
    """Segments in the order they are read. Tokens never reach across the border of what is trained and what is not.

    references: all responses that are right, for scoring.   task: what it is counted under.   cut: tokens its template left out of the
    prompt's end to keep to a length.   unanswered: it is a prompt, and nothing more.
    """

    segments: tuple[Segment, ...]
    references: tuple[str, ...] = ()
    task: str = ""
    cut: int = 0
    unanswered: bool = False

    @property
    def prompt(self) -> tuple[Segment, ...]:
        """What generation is given: everything before the first trained segment of the last turn."""
        return self.segments[: self._border]

    @property
    def response(self) -> tuple[Segment, ...]:
        """The last turn's trained segments, and what follows them; () when nothing is trained."""
        return self.segments[self._border :]

    @property
    def _border(self) -> int:
        border = len(self.segments)
        if self.unanswered:
            return border
        while border and not self.segments[border - 1].trained:
            border -= 1
        if not border:
            return len(self.segments)
        while border and self.segments[border - 1].trained:
            border -= 1
        return border


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message of a conversation. role: "system", "user", "assistant" or "tool".

    trained: whether it carries a loss, if it is an assistant's.   fields: what else the message holds, by its name in chat templates:
    tool_calls, reasoning_content, name and the like.
    """

    role: str
    text: str
    trained: bool = True
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A solved (or wrongly solved) instance that a task shows; explanation: why, or None; instruction: "" = the task's."""

    input: str
    output: str
    explanation: str | None = None
    instruction: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One row of instruct data, whatever the format of its file.

    Either an instruction (a task's definition, or a whole prompt), the input it is applied to or "", and the output wanted, with what else
    a task shows; or the turns of a conversation. output, like the last assistant's turn, is "" in a prompt that is yet to be answered.
    references: all outputs that are right, or () for the one.   source: file and line.   category: of its task, or "".
    tools: that the conversation offers, as transformers passes them to a chat template.
    """

    instruction: str = ""
    input: str = ""
    output: str = ""
    turns: tuple[Turn, ...] = ()
    references: tuple[str, ...] = ()
    positive: tuple[Demonstration, ...] = ()
    negative: tuple[Demonstration, ...] = ()
    task: str = ""
    source: str = ""
    category: str = ""
    tools: tuple[Mapping, ...] = dataclasses.field(default=(), hash=False)


@dataclasses.dataclass(frozen=True)
class Preference:
    """A prompt with an answer that was preferred to another."""

    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    source: str = ""
