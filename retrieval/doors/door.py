"""The interface of the doors at a model's input, and their names."""

import abc
import ast
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lm import plugins
from lm.errors import nearest
from lm.models.config import ModelConfig
from retrieval.errors import RetrievalError
from retrieval.passages import Hit

HOMES = {
    "in_context": "retrieval.doors.in_context:InContext",
    "replug": "retrieval.doors.ensemble:Replug",
    "rag_token": "retrieval.doors.ensemble:RagToken",
    "rag_sequence": "retrieval.doors.ensemble:RagSequence",
    "fid": "retrieval.doors.fid:FusionInDecoder",
}
DEFAULT = "in_context"
KINDS = {  # of readers
    "decoder": "a decoder",
    "encoder-decoder": "an encoder-decoder",
    "spans": "an encoder with a head for answer spans",
    "classes": "an encoder with a head for classes",
}
WRITERS = ("decoder", "encoder-decoder")

Find = Callable[[Sequence[str]], list[list[Hit]]]  # queries -> hits of each, best first


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question and the passages found for it, best first; without any, it is closed-book."""

    question: str
    hits: tuple[Hit, ...] = ()


@dataclasses.dataclass(frozen=True)
class Read:
    """What a reader answered.

    shown: the passages that it read, best first. cut: tokens of them that it could not read.
    label: whether `text` is the name of a class, which no passage needs to contain.
    """

    text: str
    shown: tuple[Hit, ...] = ()
    cut: int = 0
    label: bool = False


@dataclasses.dataclass(frozen=True)
class Input:
    """What a model reads before an answer or a text goes on.

    rows: token lists, which the encoder reads in an encoder-decoder. With several, the
    probabilities of what follows are mixed; log_weights are the logarithms of their shares.
    segments: the passage, from 1, of each token of the only row; () = all are one. shown, cut: see
    `Read`.
    """

    rows: tuple[list[int], ...]
    log_weights: tuple[float, ...] = (0.0,)
    segments: tuple[int, ...] = ()
    shown: tuple[Hit, ...] = ()
    cut: int = 0


@dataclasses.dataclass(frozen=True)
class Door(abc.ABC):
    """Makes a model's input of passages. Derive a frozen dataclass; its fields are its options.

    stride: tokens of an answer from one search to the next (Ram et al. 2023, section 3); 0 = one
    search, with the question. query: tokens at the end of the question and the answer so far that
    are searched for.
    """

    stride: int = 0
    query: int = 32

    name: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]] = WRITERS  # of readers that it serves
    whole: ClassVar[bool] = False  # probabilities of whole answers are mixed, not of tokens

    def __post_init__(self):
        for field, least in (("stride", 0), ("query", 1)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RetrievalError(
                    f"--door={self.name},{field}={value!r}: expected a whole number of tokens, at "
                    f"least {least}"
                )
        if self.whole and self.stride:
            raise RetrievalError(
                f"--door={self.name},stride={self.stride}: this door mixes the probabilities of "
                "whole answers, so that passages cannot change within one: leave stride out, or "
                "use rag_token"
            )

    def why_not(self, c: ModelConfig) -> str:
        """Why the door cannot serve a model; "" if it can."""
        kind = kind_of(c)
        if kind not in self.kinds:
            served = " or ".join(KINDS[kind] for kind in self.kinds)
            return f"a {c.family} model here is {KINDS[kind]}, and this door serves {served}"
        if self.stride and kind not in WRITERS:
            return f"stride={self.stride}: {KINDS[kind]} writes no tokens to search again after"
        return ""

    @abc.abstractmethod
    def question(self, reader: Any, asked: Asked, room: int) -> Input:
        """Input of at most `room` tokens a row for a question."""

    @abc.abstractmethod
    def passage(self, reader: Any, hits: Sequence[Hit], context: list[int], room: int) -> Input:
        """Input of at most `room` tokens a row for a text that goes on after `context`."""


def kind_of(c: ModelConfig) -> str:
    """Kind of reader that a model is, a key of KINDS. Raises RetrievalError if it is none."""
    if c.head == "causal_lm" and c.causal and not c.encoder_layers:
        return "decoder"
    if c.head == "seq2seq_lm":
        return "encoder-decoder"
    if c.head == "question_answering" and not c.encoder_layers:
        return "spans"
    if c.head == "sequence_classification" and not c.encoder_layers and c.n_labels > 1:
        return "classes"
    labels = f" and {c.n_labels} labels" if c.n_labels else ""
    raise RetrievalError(
        f"a {c.family} model with head={c.head!r}{labels} answers no questions: the reader must be "
        "a causal language model, an encoder-decoder, or an encoder with a head for answer spans "
        "or for classes"
    )


def check(door: Door, c: ModelConfig, path: str = "") -> None:
    """Raise RetrievalError for a door that cannot serve the model, which is at `path`."""
    where = f"{path}: " if path else ""
    try:
        why = door.why_not(c)
    except RetrievalError as error:
        raise RetrievalError(f"{where}{error}") from None
    if why:
        raise RetrievalError(f"{where}--door={door.name or type(door).__name__}: {why}")


def named(text: str) -> Door:
    """Door of "name" or "name,option=value,..."; the name may be module:Class.

    Raises RetrievalError for an unknown name or option, and for a value out of range.
    """
    return parsed("--door", text, HOMES, Door)


def parsed(flag: str, text: str, homes: Mapping[str, str], base: type) -> Any:
    """Instance of "name" or "name,option=value,...", a dataclass that derives from `base`.

    homes: name -> module:Class. Raises RetrievalError as `named`, calling the option `flag`.
    """
    name, *options = text.split(",")
    if ":" not in name and name not in homes:
        raise RetrievalError(
            f"{flag}={name!r} is unknown{nearest(name, homes)}; one of {', '.join(homes)}, or "
            "module:Class of your own"
        )
    kind = plugins.find(flag, homes.get(name, name), {}, base)
    known = [field.name for field in dataclasses.fields(kind)]
    given = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in known or not equals:
            raise RetrievalError(
                f"{flag}={text}: {option!r} is no option of {name}{nearest(key, known)}; expected "
                f"{', '.join(f'{each}=...' for each in known)}"
            )
        try:
            given[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[key] = value
    return kind(**given)


def shares(hits: Sequence[Hit], temperature: float) -> tuple[float, ...]:
    """log softmax(score / temperature) of the passages: log p(passage | question)."""
    scores = np.asarray([hit.score for hit in hits], np.float64) / temperature
    return tuple((scores - np.logaddexp.reduce(scores)).tolist())
