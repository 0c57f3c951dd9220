"""Tokenise examples and mark the tokens that carry a loss.

Training and generation both use this module, so they read the same tokens.

Trained and untrained text is tokenised separately, so the loss mask is exact. Only the start and
end tokens that the tokenizer itself adds are added. A template that already spells the start token
does not get a second one.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.data.read.sources import DataError
from lm.data.records.examples import Example, Segment

AT_ONCE = 256  # examples per call of the tokenizer
SPACE = "▁"  # SentencePiece's symbol for a space


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokens of one example.

    ids: int32 [n]. The first is only an input, never a target.
    trained: bool [n], True for tokens with a loss.
    prompt: number of ids that are given to generation.
    read: int32 [m], the encoder's input; [0] without an encoder.
    bytes: UTF-8 bytes of the answer.
    keep: number of special tokens at the start and the end of the prompt.
    cut: tokens that the template left out.
    """

    ids: np.ndarray
    trained: np.ndarray
    prompt: int
    read: np.ndarray
    bytes: int
    keep: tuple[int, int] = (0, 0)
    cut: int = 0


@dataclasses.dataclass(frozen=True)
class _Run:
    text: str
    trained: bool
    special: bool  # parse control tokens in the text as such
    first: bool  # at the start of a sequence


class Encoder:
    """Encode examples with a tokenizer.

    decoder_start: start token of an encoder-decoder, whose encoder reads the prompt; else None.
    """

    def __init__(self, tokenizer, decoder_start: int | None = None):
        from lm.data.templates.jinja import special_tokens

        self._tokenizer, self._start = tokenizer, decoder_start
        self._special = special_tokens(tokenizer)
        self.prefix, self.suffix = affixes(tokenizer)
        probe = tokenizer.convert_ids_to_tokens(
            tokenizer("a", add_special_tokens=False)["input_ids"]
        )
        self._space = bool(probe) and str(probe[0]).startswith(SPACE)

    def __call__(self, examples: Iterable[Example]) -> Iterator[Encoded]:
        """Encode each example. Raises DataError for an example without a trained token."""
        examples = iter(examples)
        while chunk := list(itertools.islice(examples, AT_ONCE)):
            split = [
                (
                    self._runs(example.prompt, True),
                    self._runs(example.response, self._start is not None),
                )
                for example in chunk
            ]
            ids = iter(
                self._tokenise([run for prompt, response in split for run in (*prompt, *response)])
            )
            for example, (prompt, response) in zip(chunk, split, strict=True):
                asked = [(run, next(ids)) for run in prompt]
                yield self._joined(example, asked, [(run, next(ids)) for run in response])

    def prompt(self, example: Example) -> list[int]:
        """Ids of the prompt for generation. With an encoder, they are the encoder's input."""
        runs = self._runs(example.prompt, True)
        ids = [i for found in self._tokenise(runs) for i in found]
        return self._framed(ids)

    def _joined(self, example: Example, asked, answered) -> Encoded:
        prompt = self._framed([i for _, ids in asked for i in ids])
        trained = [run.trained for run, ids in asked for _ in ids]
        written = [i for _, ids in answered for i in ids]
        loss = [run.trained for run, ids in answered for _ in ids]
        end = len(loss) - next((i for i, on in enumerate(reversed(loss)) if on), len(loss))
        if not end:
            raise DataError("an example has no token with a loss: its template trains none")
        written, loss = written[:end], loss[:end]
        said = [segment for segment in example.response if segment.trained]
        size = sum(
            len(segment.text.encode()) for segment in [s for s in said if not s.control] or said
        )
        if self._start is None:
            mask = [False] * (len(prompt) - len(trained)) + trained + loss
            ids = np.array([*prompt, *written], np.int32)
            kept = (len(prompt) - len(trained), 0)
            return Encoded(
                ids,
                np.array(mask, bool),
                len(prompt),
                np.zeros(0, np.int32),
                size,
                kept,
                example.cut,
            )
        begin = [] if written[: len(self.prefix)] == self.prefix else self.prefix
        ids = np.array([self._start, *begin, *written], np.int32)
        mask = np.array([False, *[True] * len(begin), *loss])
        kept = (
            len(self.prefix) if prompt[: len(self.prefix)] == self.prefix else 0,
            len(self.suffix),
        )
        return Encoded(ids, mask, 1, np.array(prompt, np.int32), size, kept, example.cut)

    def _framed(self, ids: list[int]) -> list[int]:
        """Add the tokenizer's start token if it is missing, and for an encoder its end token."""
        start = [] if ids[: len(self.prefix)] == self.prefix else self.prefix
        return [*start, *ids, *(self.suffix if self._start is not None else [])]

    def _runs(self, segments: Sequence[Segment], first: bool) -> list[_Run]:
        found = []
        for trained, group in itertools.groupby(
            (s for s in segments if s.text), key=lambda segment: segment.trained
        ):
            for text, special in self._texts(list(group)):
                found.append(_Run(text, trained, special, first and not found))
        return found

    def _texts(self, segments: list[Segment]) -> list[tuple[str, bool]]:
        """(text, parse control tokens) pairs.

        One pair if all control tokens in the text come from the template. Otherwise the segments
        are separate, so that control tokens in a user's text stay text.
        """
        joined = "".join(segment.text for segment in segments)
        own, at = [], 0
        for segment in segments:
            own += (
                [m.start() + at for m in self._special.finditer(segment.text)]
                if segment.control
                else []
            )
            at += len(segment.text)
        if [m.start() for m in self._special.finditer(joined)] == own:
            return [(joined, True)]
        groups = itertools.groupby(segments, key=lambda segment: segment.control)
        return [("".join(segment.text for segment in group), control) for control, group in groups]

    def _tokenise(self, runs: list[_Run]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in runs]
        for special in (True, False):
            chosen = [i for i, run in enumerate(runs) if run.special == special]
            texts = [self._text(runs[i]) for i in chosen]
            if texts:
                encoded = self._tokenizer(
                    texts,
                    add_special_tokens=False,
                    split_special_tokens=not special,
                    return_attention_mask=False,
                    verbose=False,
                )
                for i, ids in zip(chosen, encoded["input_ids"], strict=True):
                    found[i] = list(ids)
        return found

    def _text(self, run: _Run) -> str:
        # SentencePiece prepends a space to every text; a continuation already has its own.
        return (
            run.text[1:]
            if self._space and not run.first and re.match(r" \S", run.text)
            else run.text
        )


def prompt_ids(tokenizer, text: str, encoder: bool = False) -> list[int]:
    """Ids of a prompt without a template.

    The tokenizer's prefix (once), the text, and for an encoder the tokenizer's suffix.
    """
    before, after = affixes(tokenizer)
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    return [*([] if ids[: len(before)] == before else before), *ids, *(after if encoder else [])]


def affixes(tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer itself puts before and after a text."""
    inner, outer = (
        list(tokenizer.encode("a", add_special_tokens=False)),
        list(tokenizer.encode("a")),
    )
    for at in range(len(outer) - len(inner) + 1):
        if outer[at : at + len(inner)] == inner:
            return outer[:at], outer[at + len(inner) :]
    return [], []
