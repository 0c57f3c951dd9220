"""Readers: a model with its tokenizer, ready to answer many questions."""

from collections.abc import Callable, Sequence
from typing import Any

import lm
from lm.models import inputs
from lm.weights import loading
from retrieval.doors import door as doors
from retrieval.doors.door import Door
from retrieval.errors import RetrievalError
from retrieval.sanitising import one_line


class Reader:
    """A language model that writes answers: a decoder, an encoder-decoder or a state-space model.

    kind: "decoder" or "encoder-decoder". start: first token that the decoder of an encoder-decoder
    reads.
    """

    def __init__(self, model, params, tokenizer):
        self.kind = doors.kind_of(model.config)
        if self.kind not in doors.WRITERS:
            raise RetrievalError(
                f"{doors.KINDS[self.kind]} (a {model.config.family} model) writes no answers: load "
                "it with retrieval.load_reader"
            )
        self.model, self.params = lm.separate(model, params)
        self.tokenizer, self.start = tokenizer, model.config.decoder_start_token_id
        self.stop_tokens = [*model.config.eos_token_ids]
        if self.kind == "encoder-decoder" and self.start is None:
            raise RetrievalError(
                f"this {model.config.family} model names no decoder_start_token_id, after which "
                "its decoder would begin an answer"
            )
        # A base model would continue with another question.
        if self.kind == "decoder" and not tokenizer.chat_template:
            self.stop_tokens += tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]

    @classmethod
    def from_hf(cls, path_or_id) -> "Reader":
        """Load from a directory, hub id or GGUF file.

        Raises ValueError (lm.WeightsError) when it cannot be read.
        """
        return cls(*lm.from_hf(path_or_id), lm.load_tokenizer(path_or_id))

    def prompt_tokens(self, max_new_tokens: int) -> int:
        """Return the longest prompt, in tokens, that leaves room for `max_new_tokens`."""
        longest = self.model.config.max_length
        room = longest - max_new_tokens
        if max_new_tokens < 1 or room < 1:
            raise RetrievalError(
                f"max_new_tokens={max_new_tokens}: expected 1 to {longest - 1}, the reader's "
                "context"
            )
        return room if self.kind == "decoder" else longest

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
        return [self.text(answer) for answer in tokens]

    def text(self, tokens: Sequence[int]) -> str:
        """The first line of an answer."""
        return first_line(self.tokenizer.decode(tokens, skip_special_tokens=True))


def load_reader(path_or_id: str, door: Door) -> Any:
    """Load a reader of any kind: a run, a directory, a hub id or a GGUF file.

    Raises RetrievalError, before weights are loaded, for a model that answers no questions and for
    a door that does not serve it; ValueError for one that cannot be read.
    """
    c = loading.model_config(path_or_id)
    doors.check(door, c, path_or_id)
    if doors.kind_of(c) in doors.WRITERS:
        return Reader(*loading.load(path_or_id))
    from retrieval.reading.extracting import Extractor

    return Extractor(*loading.load(path_or_id))


def door_of(path_or_id: str, asked: str = "") -> Door:
    """The door that is asked for, else that of the reader's run, else in_context.

    A run names its door in `config.task.door`. Raises RetrievalError for an unknown one, and for
    one that does not serve the reader.
    """
    trained = "" if asked else loading.run_config(path_or_id).get("task", {}).get("door", "")
    door = doors.named(asked or trained or doors.DEFAULT)
    doors.check(door, loading.model_config(path_or_id), path_or_id)
    return door


def first_line(text: str) -> str:
    """Return the first line that is not blank, stripped."""
    return one_line(next((line for line in text.splitlines() if line.strip()), ""))
