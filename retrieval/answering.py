"""Answers with and without a memory: the same reader, the same questions, closed-book and open-book side by side."""

import dataclasses
import re
from collections.abc import Callable, Sequence

import lm
from retrieval.errors import RetrievalError
from retrieval.fusion.in_context import build_prompt, one_line
from retrieval.memory import Memory
from retrieval.passages import Hit

MARGIN = 0.1  # of cosine: passages further below the best are not shown; a small reader mistakes them for the answer


@dataclasses.dataclass(frozen=True)
class Answer:
    """citations: the passages shown to the reader that hold the answer's words, or all that were shown when none does."""

    question: str
    text: str
    citations: tuple[Hit, ...]
    closed_book_text: str


class Reader:
    """A causal language model with its tokenizer, ready to answer many questions."""

    def __init__(self, model, params, tokenizer):
        if not model.config.causal:
            raise RetrievalError(f"a {model.config.family} model cannot write an answer: the reader must be a causal language model")
        self.model, self.params = lm.separate(model, params)
        self.tokenizer = tokenizer
        self._stop = [*model.config.eos_token_ids]
        if not tokenizer.chat_template:  # a plain language model goes on with a question of its own
            self._stop += tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]

    @classmethod
    def from_hf(cls, path_or_id) -> "Reader":
        """From a directory, hub id or GGUF file. Raises ValueError (lm.WeightsError) when it cannot be read."""
        return cls(*lm.from_hf(path_or_id), lm.load_tokenizer(path_or_id))

    def prompt_tokens(self, max_new_tokens: int) -> int:
        """How long a prompt may be when `max_new_tokens` are to follow it."""
        room = self.model.config.max_length - max_new_tokens
        if max_new_tokens < 1 or room < 1:
            raise RetrievalError(f"max_new_tokens={max_new_tokens}: expected 1 to {self.model.config.max_length - 1}, the reader's context")
        return room

    def __call__(self, prompts: Sequence[list[int]], max_new_tokens: int, on_batch: Callable[[int], None] | None = None) -> list[str]:
        """Greedy answers, one line each; `on_batch(number)` is called as answers are done."""
        tokens = lm.generate(self.model, self.params, prompts, max_new_tokens, stop_tokens=self._stop, on_batch=on_batch)
        return [first_line(self.tokenizer.decode(answer, skip_special_tokens=True)) for answer in tokens]


def answer(
    questions: Sequence[str], memory: Memory, reader: Reader, k: int = 3, max_new_tokens: int = 24,
    on_batch: Callable[[int], None] | None = None,
) -> list[Answer]:  # fmt: skip
    """Answers every question twice: from the reader's weights alone, and from at most k passages of the memory.

    An empty memory gives the closed-book answer twice, without citations. `on_batch(number)` is called as answers are done, of
    which there are two a question. Raises RetrievalError, before the reader runs, for a question that is blank or too long.
    """
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not questions:
        return []
    room = reader.prompt_tokens(max_new_tokens)
    closed = [build_prompt(reader.tokenizer, question, (), room) for question in questions]
    hits = [close_to_the_best(found) for found in memory.search(questions, k)]
    opened = [build_prompt(reader.tokenizer, question, found, room) for question, found in zip(questions, hits, strict=True)]
    closed_texts = reader([prompt.tokens for prompt in closed], max_new_tokens, on_batch)
    open_texts = reader([prompt.tokens for prompt in opened], max_new_tokens, on_batch)
    return [
        Answer(question, text, citations(text, prompt.shown), closed_text)
        for question, text, prompt, closed_text in zip(questions, open_texts, opened, closed_texts, strict=True)
    ]


def close_to_the_best(hits: Sequence[Hit], margin: float = MARGIN) -> list[Hit]:
    """The hits within `margin` of the best one's score."""
    return [hit for hit in hits if hit.score >= hits[0].score - margin]


def citations(text: str, shown: Sequence[Hit]) -> tuple[Hit, ...]:
    """Of the shown passages, those that hold most of the answer's words; all of them when no passage holds half."""
    words = set(_words(text))
    if not words or not shown:
        return tuple(shown)
    shares = [len(words.intersection(_words(f"{hit.title} {hit.text}"))) / len(words) for hit in shown]
    best = max(shares)
    return tuple(hit for hit, share in zip(shown, shares, strict=True) if share == best) if best >= 0.5 else tuple(shown)


def first_line(text: str) -> str:
    """The first line that is not blank, without white space around it."""
    return one_line(next((line for line in text.splitlines() if line.strip()), ""))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
