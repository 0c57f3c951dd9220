"""Conditions of a probe: closed-book here; packages with memories derive open-book ones.

A probe asks a `Book`, which a `Condition` opens for the parameters that are measured.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm import plugins
from lm.data.encode.encoding import prompt_ids
from lm.data.encode.plain_text import start_token
from lm.evaluation import generation
from lm.evaluation.evaluators.evaluator import Tools
from lm.evaluation.likelihood import token_log_likelihoods
from lm.generation import generate
from lm.generation.text import decoded
from lm.models.config import ConfigError, nearest

BATCH = 32  # rows that are scored or written together


class Question(NamedTuple):
    """A prompt, and what a memory is searched for; "" = the prompt.

    framed: whether the prompt is an instruction, which the template of the run renders.
    """

    prompt: str
    query: str = ""
    framed: bool = False


class Book:
    """A model that is asked closed-book. Derived classes add a memory, of `bytes`."""

    bytes: int = 0

    def __init__(self, tools: Tools, params: dict):
        self.tools, self.params = tools, params
        self.encoder = bool(tools.model.config.encoder_layers)

    def log_probs(self, asked: Sequence[tuple[Question, str]]) -> list[np.ndarray]:
        """log p of each token of the continuations, float32 [n]."""
        found = token_log_likelihoods(
            self.tools.model,
            self.params,
            self.pairs(asked),
            batch_size=BATCH,
            tokenizer=self.tools.tokenizer,
        )
        return [each for each, _ in found]

    def write(self, questions: Sequence[Question], most: int) -> list[str]:
        """Greedy continuations of at most `most` tokens."""
        room = generation.room(self.tools.model.config, most)
        found = generate(
            self.tools.model,
            self.params,
            [ids[-room:] for ids in self.contexts(questions)],
            most,
            batch_size=BATCH,
            hooks=self.hooks(),
        )
        return [decoded(self.tools.tokenizer, ids).strip() for ids in found]

    def contexts(self, questions: Sequence[Question]) -> list[list[int]]:
        """Tokens that the model reads before it goes on."""
        return [self.ids(question) for question in questions]

    def hooks(self) -> tuple:
        """Hooks of generation."""
        return ()

    def ids(self, question: Question) -> list[int]:
        """Tokens of the prompt alone. A decoder reads at least the start token."""
        if question.framed:
            return self.tools.prompt_ids(question.prompt)
        found = prompt_ids(self.tools.tokenizer, question.prompt, self.encoder)
        return found or [start_token(self.tools.tokenizer)]

    def pairs(self, asked: Sequence[tuple[Question, str]]) -> list[tuple[list[int], list[int]]]:
        """Contexts and continuations. A decoder's continues the text, after a space."""
        contexts = self.contexts([question for question, _ in asked])
        return [
            (context, self.continuation(text, question))
            for context, (question, text) in zip(contexts, asked, strict=True)
        ]

    def continuation(self, text: str, question: Question) -> list[int]:
        """Tokens of what follows a prompt."""
        spaced = bool(question.prompt) and not self.encoder
        text = " " * spaced + text.strip()
        return self.tools.tokenizer(text, add_special_tokens=False)["input_ids"]


@dataclasses.dataclass(frozen=True)
class Condition(abc.ABC):
    """What may be read beside a prompt. Derive a frozen dataclass; its fields are its options."""

    def check(self) -> None:  # noqa: B027 may have nothing to check
        """Raise ConfigError, which begins with the field, before anything is read."""

    @abc.abstractmethod
    def prepare(self, tools: Tools) -> Callable[[dict], Book]:
        """Read what is needed; return the function params -> Book."""


@dataclasses.dataclass(frozen=True)
class ClosedBook(Condition):
    """Nothing but the parameters."""

    def prepare(self, tools: Tools) -> Callable[[dict], Book]:
        return lambda params: Book(tools, params)


CONDITIONS: dict[str, type[Condition]] = {"closed_book": ClosedBook}


def of(section: Mapping[str, Any]) -> Condition:
    """Condition of {"type": NAME or module:Class, FIELD: ...}; {} is closed-book.

    Raises ConfigError, naming the field.
    """
    fields = dict(section.items()) if hasattr(section, "items") else None
    if fields is None:
        raise ConfigError(
            f"condition={section!r}: expected fields: type ({', '.join(CONDITIONS)}, or "
            "module:Class), and those of the condition"
        )
    name = fields.pop("type", "closed_book")
    kind = plugins.find("condition.type", name, CONDITIONS, Condition)
    known = [field.name for field in dataclasses.fields(kind)]
    for field in fields:
        if field not in known:
            raise ConfigError(
                f"condition.{field}: the condition {name!r} has no such field"
                f"{nearest(field, known)}; its fields are {', '.join(known) or 'none'}"
            )
    made = plugins.made(kind, fields)
    try:
        made.check()
    except ConfigError as error:
        raise ConfigError(f"condition.{error}") from error
    return made
