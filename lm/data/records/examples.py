"""Data classes of instruct data.

A record is a row of a file. An example is a record after a template rendered it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Segment:
    """Piece of text.

    trained: its tokens carry a loss.
    control: written by the template, so control tokens in it are parsed as such. In a user's text
    they stay text.
    """

    text: str
    trained: bool
    control: bool = False


@dataclasses.dataclass(frozen=True)
class Example:
    """Segments in reading order. No token spans a trained and an untrained segment.

    references: all correct responses, for scoring.
    task: task under which it is counted.
    cut: tokens that the template cut from the end of the prompt to keep to a length.
    unanswered: it is a prompt without a response.
    """

    segments: tuple[Segment, ...]
    references: tuple[str, ...] = ()
    task: str = ""
    cut: int = 0
    unanswered: bool = False

    @property
    def prompt(self) -> tuple[Segment, ...]:
        """Prompt for generation: the segments before the first trained one of the last turn."""
        return self.segments[: self._border]

    @property
    def response(self) -> tuple[Segment, ...]:
        """Trained segments of the last turn and what follows; () if nothing is trained."""
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

    trained: whether an assistant's message carries a loss.
    fields: other fields of the message by their names in chat templates: tool_calls,
    reasoning_content, name and the like.
    """

    role: str
    text: str
    trained: bool = True
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """Example of an instance that a task shows in its prompt, solved correctly or wrongly.

    explanation: why it is right or wrong, or None. instruction: "" = that of the task.
    """

    input: str
    output: str
    explanation: str | None = None
    instruction: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One row of instruct data, independent of the file's format.

    It has one of two forms: `instruction` (a task's definition or a whole prompt) with `input` (may
    be "") and `output`; or `turns`, the messages of a conversation. In a prompt without an answer,
    `output` or the text of the last assistant turn is "".
    references: all correct outputs; () if there is only `output`.
    positive, negative: demonstrations of the task.
    source: file and line. category: of the task, or "".
    tools: tools of the conversation, in the form that transformers passes to chat templates.
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
    """Prompt with a preferred and a rejected answer."""

    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    source: str = ""
