"""Span corruption: write the spans missing from a text (T5, Raffel et al. 2020).

See sections 3.1.4 and 3.3.4. Counts and probabilities are those of `random_spans_noise_mask` in the
paper's code: the number of missing tokens and spans depends on the length alone, a span comes last,
and all masks with these properties are equally likely.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from lm.data.packed import Packed
from lm.models.config import ConfigError, ModelConfig
from lm.tasks import pieces, rows
from lm.tasks.task import Fields, Row, Transform, share
from lm.tasks.text import TextTask


@dataclasses.dataclass(frozen=True)
class Noise:
    """One kind of corruption: a share `rate` of the tokens, in spans of mean length `mean_span`.

    mean_span = inf means one span that ends the text. mode: id of a token that the encoder input
    then begins with, or None. chance: relative probability among several noises.
    """

    rate: float
    mean_span: float
    mode: int | None = None
    chance: float = 1.0


def counts(length, rate: float, mean_span: float):
    """Numbers of missing tokens and of spans for texts of `length` tokens, int [...] both.

    In a text of a single token nothing is missing.
    """
    length = np.asarray(length)
    tokens = np.clip(np.rint(length * rate), 1, np.maximum(length - 1, 1)).astype(np.int64)
    spans = np.clip(
        np.rint(tokens / mean_span), 1, np.maximum(np.minimum(tokens, length - tokens), 1)
    ).astype(np.int64)
    return np.where(length > 1, tokens, 0), np.where(length > 1, spans, 0)


def sizes(length, rate: float, mean_span: float):
    """Tokens to read and to write for texts of `length` tokens, int [...] both.

    Sentinels and end tokens are included.
    """
    tokens, spans = counts(length, rate, mean_span)
    read, written = length - tokens + spans + 1, np.where(tokens > 0, tokens + spans + 1, 2)
    return np.where(length > 0, read, 0), np.where(length > 0, written, 0)


def noise_mask(length: int, rate: float, mean_span: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the mask of missing tokens, bool [length].

    Kept and missing spans alternate, beginning with a kept one.
    """
    tokens, spans = (int(n) for n in counts(length, rate, mean_span))
    if not spans:
        return np.zeros(length, bool)
    kept, missing = _segmentation(length - tokens, spans, rng), _segmentation(tokens, spans, rng)
    return np.repeat(np.tile([False, True], spans), np.stack([kept, missing], axis=1).ravel())


def corrupt(
    ids: np.ndarray, missing: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids with missing spans replaced by sentinels, and with kept spans replaced.

    Both use the first sentinels, in order.
    """
    return _replaced(ids, missing, sentinels), _replaced(ids, ~missing, sentinels)


def sentinels(tokenizer) -> np.ndarray:
    """Ids of <extra_id_0>, <extra_id_1>, ... that the tokenizer has, int32 [n]."""
    vocabulary, found = tokenizer.get_vocab(), []
    while (token := f"<extra_id_{len(found)}>") in vocabulary:
        found.append(vocabulary[token])
    return np.array(found, np.int32)


@dataclasses.dataclass(frozen=True)
class SpanCorruption(TextTask):
    """Write the spans that are missing from the encoder's text."""

    rate: float = 0.15  # share of tokens to predict
    mean_span: float = 3.0  # mean span length in tokens

    heads: ClassVar[tuple[str, ...]] = ("seq2seq_lm",)
    special: ClassVar[Mapping] = {"sentinels": 100}
    whole: ClassVar[bool] = True

    def longest(self, length: int) -> int:
        """Tokens of the longer side of a text that fills a row; ConfigError for invalid shares."""
        share("rate", self.rate, most=0.99)
        share("mean_span", self.mean_span, least=0.99, most=1000)
        return int(max(most(length, [Noise(self.rate, self.mean_span)])))

    def transform(self, tokenizer, model: ModelConfig) -> Transform:
        """Transform with one Noise. See `corruption`."""
        noise = Noise(self.rate, self.mean_span)
        return corruption("span_corruption", tokenizer, model, [noise])


def corruption(name: str, tokenizer, config: ModelConfig, noises: Sequence[Noise]) -> Transform:
    """Transform that applies to each text one of the noises, drawn by its `chance`.

    The encoder reads the text with <extra_id_0>, <extra_id_1>, ... in place of the spans. The
    decoder writes each sentinel and its span. Both sides end in the end token. Rows must be packed
    with `whole`; a start token of the tokenizer is dropped, because T5 has none.

    Raises ConfigError, naming task `name`, for a model without a decoder start token and for a
    tokenizer without sentinels. Once the length of rows is known, also for fewer sentinels than a
    full row has spans.
    """
    eos = pieces.needed(tokenizer, name, "eos_token")
    first, _ = pieces.ends(tokenizer)
    marks = sentinels(tokenizer)
    if not len(marks):
        raise ConfigError(
            f"task {name!r} needs a tokenizer with sentinels, <extra_id_0>, <extra_id_1>, "
            "..., and this one has none: use T5's, or 'bytes'"
        )
    start = rows.decoder_start(name, config)
    edges = np.cumsum([noise.chance for noise in noises])

    def of_document(ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        text = ids[rows.text_of(ids, first, eos)]
        if not len(text):
            return text, text
        noise = (
            noises[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]
            if len(noises) > 1
            else noises[0]
        )
        read, written = corrupt(
            text, noise_mask(len(text), noise.rate, noise.mean_span, rng), marks
        )
        mode = [] if noise.mode is None else [noise.mode]
        return np.concatenate([mode, read, [eos]]).astype(np.int32), np.append(written, eos)

    def lengths(packed: Packed) -> tuple[int, int]:
        spans = max(int(counts(packed.length, noise.rate, noise.mean_span)[1]) for noise in noises)
        if spans > len(marks):
            longer = " or raise task.mean_span" if len(noises) == 1 else ""
            raise ConfigError(
                f"length={packed.length}: a text that fills a row has {spans} spans, "
                f"and the tokenizer {len(marks)} sentinels; "
                f"lower length{longer}"
            )
        # A document shorter than its row includes an end token, which is not text.
        texts = lambda n: np.where(n == packed.length, n, n - 1)
        read, written = (
            rows.widest(packed, lambda n, side=side: most(texts(n), noises)[side])
            for side in (0, 1)
        )
        return written, read

    def fields(row: Row, rng: np.random.Generator, lengths: tuple[int, int]) -> Fields:
        return rows.sides(row, of_document, start, rng, lengths)

    return Transform(fields, lengths)


def most(length, noises: Sequence[Noise]):
    """Most tokens to read and to write over all noises, for texts of `length`, int [...] both."""
    read, written = zip(
        *(sizes(length, noise.rate, noise.mean_span) for noise in noises), strict=True
    )
    modes = [(of > 0) * (noise.mode is not None) for of, noise in zip(read, noises, strict=True)]
    return np.max(np.add(read, modes), axis=0), np.max(written, axis=0)


def _segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Cut `items` things into `segments` non-empty parts at random; their sizes, int [segments].

    All ways to cut are equally likely.
    """
    cuts = np.sort(rng.choice(items - 1, segments - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def _replaced(ids: np.ndarray, spans: np.ndarray, marks: np.ndarray) -> np.ndarray:
    starts = spans & ~np.concatenate([[False], spans[:-1]])
    number = np.cumsum(starts) - 1
    return np.where(starts, marks[np.clip(number, 0, len(marks) - 1)], ids)[starts | ~spans].astype(
        np.int32
    )
