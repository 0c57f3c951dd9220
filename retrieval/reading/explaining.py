"""Answers of a kNN-LM, with the sources of every token."""

import dataclasses
import math
from collections.abc import Collection, Sequence

from lm.generation.answers import fitting
from lm.generation.requests import requests
from retrieval.datastore.datastore import Datastore
from retrieval.datastore.identity import Identity
from retrieval.doors.door import KINDS, WRITERS
from retrieval.doors.in_context import build_prompt, reads_apart
from retrieval.doors.knn import KnnLM, Source, named
from retrieval.doors.knn_mixture import Mixture
from retrieval.errors import RetrievalError
from retrieval.memory import Memory
from retrieval.reading.reader import Reader, first_line
from retrieval.sanitising import one_line

SHOWN = 3  # sources of a token


@dataclasses.dataclass(frozen=True)
class Told:
    """A token of an answer. share: what the sources add to its probability, of `probability`.

    sources: the entries that hold the token, heaviest first.
    """

    text: str
    probability: float
    share: float
    sources: tuple[Source, ...]


@dataclasses.dataclass(frozen=True)
class Explained:
    """An answer, and its tokens up to the first line break."""

    question: str
    text: str
    tokens: tuple[Told, ...]


def hook_of(path: str, reader: Reader, memory: Memory, groups: Collection[str] = ()) -> KnnLM:
    """The kNN-LM of a datastore, as it was tuned, for a reader.

    Raises RetrievalError for a datastore of another model, tokenizer or memory, and for a reader
    that writes no tokens.
    """
    if reader.kind not in WRITERS:
        raise RetrievalError(
            f"--datastore={path}: {KINDS[reader.kind]} writes no tokens to mix it into"
        )
    store = Datastore(path)
    store.check(Identity.of(reader.model, reader.params, reader.tokenizer, store.identity.tap))
    return Mixture.load(store.path).hook(store, memory=memory, groups=groups)


def explained(
    questions: Sequence[str], reader: Reader, hook: KnnLM, max_new_tokens: int = 24
) -> list[Explained]:
    """Answer without passages in the prompt, with the datastore mixed in."""
    room = reader.prompt_tokens(max_new_tokens)
    build = lambda question: build_prompt(
        reader.tokenizer, question, (), room, encoder=reads_apart(reader)
    )
    prompts = [build(question).tokens for question in questions]
    asked = requests(reader.model.config, prompts, max_new_tokens, None)
    engine = fitting(reader.model, asked, 16, stop_tokens=reader.stop_tokens)
    found = sorted(engine.run(reader.params, asked, [hook]), key=lambda one: one.number)
    answers = []
    for question, one in zip(questions, found, strict=True):
        text = reader.tokenizer.decode(one.answer, skip_special_tokens=True)
        told = [
            Told(reader.tokenizer.decode([token]), *_parts(token, sources, float(log_p)))
            for token, sources, log_p in zip(
                one.answer, one.sources, one.behaviour_log_probs, strict=False
            )
        ]
        answers.append(Explained(question, first_line(text), tuple(told)))
    return answers


def _parts(token: int, sources, log_p: float) -> tuple[float, float, tuple[Source, ...]]:
    own = named(sources, token)
    return math.exp(log_p), sum(source.weight for source in own), tuple(own)


def lines(one: Explained) -> list[str]:
    """A line a token: its text, how probable it was, the memory's part of that, and from where."""
    found = []
    for token in one.tokens:
        places = ", ".join(
            f"{source.passage}@{source.offset} {source.weight:.3f}"
            for source in token.sources[:SHOWN]
        )
        more = len(token.sources) - SHOWN
        places += f" and {more} more" if more > 0 else ""
        found.append(
            f"{one_line(token.text)!r:<14} p {token.probability:.3f}, memory {token.share:.3f}"
            + (f": {places}" if places else "")
        )
    return found
