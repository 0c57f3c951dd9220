"""Answering questions closed-book and open-book: the same reader without and with a memory."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import lm
from lm.models import inputs
from retrieval.doors.in_context import build_prompt
from retrieval.errors import RetrievalError
from retrieval.ingest.sentences import sentences
from retrieval.memory import Memory
from retrieval.passages import Hit, titled
from retrieval.reading.support import supported
from retrieval.sanitising import one_line
from retrieval.store.words import words

# Cosine below the best at which passages are not shown: a small reader takes them for the answer.
MARGIN = 0.1
# Least cosine of the best passage for a known answer; for MiniLM, chosen as docs/memory.md says.
FLOOR = 0.25
REFUSAL = re.compile(
    r"\b(i (don.?t|do not|can ?not|can.?t) (know|answer|tell|find)|i( a|.?)m not sure"
    r"|no information|(not enough|insufficient) information"
    r"|(is|are|was|were) not (\w+ )?(mentioned|stated|given|provided|known)"
    r"|do(es)? not (mention|say|state|give|provide)"
    r"|(can ?not|can.?t) be (determined|answered|known))|^\W*(unknown|n/a)\W*$"
    r"|\b(is|are|was|were|remains?) unknown\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answers to a question and the passages that support the open-book one.

    citations: the passages shown to the reader that contain the answer's words; all shown passages
    if none does.
    sentences: per citation, its sentence that best supports the answer, verbatim.
    known: whether the memory supports `text`; if not, say so instead of showing `text`.
    """

    question: str
    text: str
    citations: tuple[Hit, ...]
    closed_book_text: str
    sentences: tuple[str, ...] = ()
    known: bool = True


class Searchable(Protocol):
    """What `answer` searches: a Memory, or a view of one."""

    def search(self, texts: Sequence[str], k: int = 5) -> list[list[Hit]]: ...


@dataclasses.dataclass(frozen=True)
class View:
    """A memory that is always searched with the same `options`, such as groups; see
    `Memory.search`.
    """

    memory: Memory
    options: dict

    def search(self, texts: Sequence[str], k: int = 5) -> list[list[Hit]]:
        return self.memory.search(texts, k, **self.options)


class Reader:
    """A causal language model with its tokenizer, ready to answer many questions."""

    def __init__(self, model, params, tokenizer):
        if not model.config.causal:
            raise RetrievalError(
                f"a {model.config.family} model cannot write an answer: the reader must be a "
                "causal language model"
            )
        self.model, self.params = lm.separate(model, params)
        self.tokenizer = tokenizer
        self.stop_tokens = [*model.config.eos_token_ids]
        if not tokenizer.chat_template:  # a base model would continue with another question
            self.stop_tokens += tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]

    @classmethod
    def from_hf(cls, path_or_id) -> "Reader":
        """Load from a directory, hub id or GGUF file.

        Raises ValueError (lm.WeightsError) when it cannot be read.
        """
        return cls(*lm.from_hf(path_or_id), lm.load_tokenizer(path_or_id))

    def prompt_tokens(self, max_new_tokens: int) -> int:
        """Return the longest prompt, in tokens, that leaves room for `max_new_tokens`."""
        room = self.model.config.max_length - max_new_tokens
        if max_new_tokens < 1 or room < 1:
            raise RetrievalError(
                f"max_new_tokens={max_new_tokens}: expected 1 to "
                f"{self.model.config.max_length - 1}, the reader's context"
            )
        return room

    def __call__(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Return greedy answers, one line each; `on_batch(number)` is called as answers finish."""
        inputs.check_ids(self.model.config, prompts, self.tokenizer)
        tokens = lm.generate(
            self.model,
            self.params,
            prompts,
            max_new_tokens,
            stop_tokens=self.stop_tokens,
            on_batch=on_batch,
        )
        return [
            first_line(self.tokenizer.decode(answer, skip_special_tokens=True)) for answer in tokens
        ]


def answer(
    questions: Sequence[str],
    memory: Searchable,
    reader: Reader,
    k: int = 3,
    max_new_tokens: int = 24,
    on_batch: Callable[[int], None] | None = None,
    floor: float = FLOOR,
) -> list[Answer]:
    """Answer every question from the reader's weights alone and from at most k passages.

    An empty memory gives the closed-book answer twice, without citations. on_batch(number) is
    called as answers finish; there are two per question. floor: see `is_known`. Raises
    RetrievalError, before the reader runs, for a question that is blank or too long.
    """
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not math.isfinite(floor):
        raise RetrievalError(
            f"floor={floor!r}: expected a cosine, below which the memory does not know"
        )
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not questions:
        return []
    room = reader.prompt_tokens(max_new_tokens)
    closed = [build_prompt(reader.tokenizer, question, (), room) for question in questions]
    hits = [close_to_the_best(found) for found in memory.search(questions, k)]
    opened = [
        build_prompt(reader.tokenizer, question, found, room)
        for question, found in zip(questions, hits, strict=True)
    ]
    # One call for both: a single question is then one batch, compiled once.
    texts = reader([prompt.tokens for prompt in (*closed, *opened)], max_new_tokens, on_batch)

    closed_texts, open_texts = texts[: len(closed)], texts[len(closed) :]
    return [
        _answer(question, text, prompt.shown, closed_text, floor)
        for question, text, prompt, closed_text in zip(
            questions, open_texts, opened, closed_texts, strict=True
        )
    ]


def _answer(
    question: str, text: str, shown: tuple[Hit, ...], closed_text: str, floor: float
) -> Answer:
    cited = citations(text, shown)
    supporting = tuple(supporting_sentence(hit.text, question, text) for hit in cited)
    return Answer(
        question, text, cited, closed_text, supporting, is_known(question, text, shown, floor)
    )


def close_to_the_best(hits: Sequence[Hit], margin: float = MARGIN) -> list[Hit]:
    """Return the hits within `margin` of the best score."""
    return [hit for hit in hits if hit.score >= hits[0].score - margin]


def citations(text: str, shown: Sequence[Hit]) -> tuple[Hit, ...]:
    """Return the shown passages that contain most of the answer's words.

    All of them if no passage contains half of the words.
    """
    said = set(words(text))
    if not said or not shown:
        return tuple(shown)
    shares = [len(said.intersection(words(f"{hit.title} {hit.text}"))) / len(said) for hit in shown]
    best = max(shares)
    return (
        tuple(hit for hit, share in zip(shown, shares, strict=True) if share == best)
        if best >= 0.5
        else tuple(shown)
    )


def supporting_sentence(passage: str, question: str, text: str) -> str:
    """Return the sentence of a passage that shares most words with the answer and question.

    A shared word counts 2 if it is the answer's plus 1 if it is the question's, divided by the
    number of sentences that contain it. The first of equal sentences is returned.
    """
    parts = [passage[start:end] for start, end in sentences(passage, 0, len(passage))] or [passage]
    found = [set(words(part)) for part in parts]
    held = collections.Counter(word for part in found for word in part)
    asked, said = set(words(question)), set(words(text))
    weight = lambda word: ((word in asked) + 2 * (word in said)) / held[word]
    scores = [math.fsum(map(weight, part)) for part in found]
    return parts[scores.index(max(scores))]


def is_known(question: str, text: str, shown: Sequence[Hit], floor: float = FLOOR) -> bool:
    """Whether the passages shown support an answer.

    The best hit must score at least `floor`, the reader must not refuse, and one passage must
    contain all that the answer adds to the question (see `support.supported`).
    """
    if not shown or shown[0].score < floor or not text.strip() or REFUSAL.search(text):
        return False
    return supported(question, text, [titled(hit.title, hit.text) for hit in shown])


def first_line(text: str) -> str:
    """Return the first line that is not blank, stripped."""
    return one_line(next((line for line in text.splitlines() if line.strip()), ""))
