"""Denoising: reconstruct a document from a corrupted copy (BART, Lewis et al. 2020, section 2.2).

The paper's final models use text infilling and sentence permutation. Its other corruptions are here
too, and can be combined.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from lm.data.packed import Packed
from lm.models.config import ConfigError, ModelConfig
from lm.tasks import pieces, rows
from lm.tasks.task import Fields, Row, Transform, share
from lm.tasks.text import TextTask


def infilled(
    text: np.ndarray, mask_id: int, rate: float, mean_span: float, rng: np.random.Generator
) -> np.ndarray:
    """Replace spans of Poisson(mean_span) tokens of the text [n] by one mask each.

    A span of length 0 inserts a mask. Spans are drawn until they cover `rate` of the tokens,
    rounded up; the last is cut to that number. They do not overlap, and all placements are equally
    likely. The result has at most n tokens: excess spans of length 0 are dropped (in texts of a few
    tokens).
    """
    budget = int(np.ceil(rate * len(text)))
    lengths = rng.poisson(mean_span, size=2 * budget + 8)
    while lengths.sum() < budget:
        lengths = np.append(lengths, rng.poisson(mean_span, size=len(lengths)))
    last = int(np.argmax(np.cumsum(lengths) >= budget))
    lengths = lengths[: last + 1]
    lengths[-1] -= lengths.sum() - budget
    empty = np.flatnonzero(lengths == 0)
    lengths = rng.permutation(
        np.delete(lengths, empty[max(0, budget - len(lengths) + len(empty)) :])
    )
    # A random order of kept tokens and spans; kept tokens stay in order.
    span = rng.permutation(len(text) - budget + len(lengths)) < len(lengths)
    covers = np.ones(len(span), np.int64)
    covers[span] = lengths
    at = np.cumsum(covers) - covers
    return np.where(span, mask_id, text[np.minimum(at, len(text) - 1)]).astype(np.int32)


def permuted(text: np.ndarray, stops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute the sentences of the text [n].

    A sentence ends after a run of full stops; `stops`, bool [V], marks their ids.
    """
    stop = stops[text]
    sentences = np.split(text, np.flatnonzero(stop[:-1] & ~stop[1:]) + 1)
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


def masked(text: np.ndarray, mask_id: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Replace each token of the text [n] by a mask with probability `rate`."""
    return np.where(rng.random(len(text)) < rate, mask_id, text).astype(np.int32)


def deleted(text: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Delete each token of the text [n] with probability `rate`, but keep at least one."""
    draw = rng.random(len(text))
    return text[(draw >= rate) | ((draw < rate).all() & (draw == draw.max()))]


def rotated(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate the text [n] to begin at a uniformly drawn token."""
    return np.roll(text, -int(rng.integers(len(text))))


@dataclasses.dataclass(frozen=True)
class Denoising(TextTask):
    """Write a document whose corrupted copy the encoder reads.

    Corruptions are applied in this order: permute_sentences, token_mask, delete, rate, rotate.
    """

    rate: float = 0.3  # share of tokens in spans replaced by one mask each; 0 = off
    mean_span: float = 3.0  # mean of the Poisson distribution of span lengths
    permute_sentences: bool = False  # shuffle the sentences
    token_mask: float = 0.0  # share of tokens replaced by a mask each
    delete: float = 0.0  # share of tokens deleted
    rotate: float = 0.0  # share of texts rotated to start at a random token

    heads: ClassVar[tuple[str, ...]] = ("seq2seq_lm",)
    special: ClassVar[Mapping] = {"mask": True}
    whole: ClassVar[bool] = True

    def transform(self, tokenizer, model: ModelConfig) -> Transform:
        """Transform: the encoder reads each document corrupted, the decoder writes all of it.

        Corruptions are applied in this order, that of the paper's code: sentences permuted, tokens
        masked, tokens deleted, spans infilled (`rate`), and a share `rotate` of the texts rotated.
        The tokens that begin and end a document stay in place on both sides.

        Raises ConfigError for invalid shares, if nothing corrupts the text, and for a tokenizer
        without the mask token or, with `permute_sentences`, the full stops that are needed.
        """
        for name, value in {
            "rate": self.rate,
            "token_mask": self.token_mask,
            "delete": self.delete,
            "rotate": self.rotate,
        }.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"task.{name}={value}: expected a share from 0 to 1")
        share("mean_span", self.mean_span, most=1000)
        if not (
            self.rate or self.permute_sentences or self.token_mask or self.delete or self.rotate
        ):
            raise ConfigError(
                "task.rate=0 and nothing else corrupts the text: raise it, "
                "or set token_mask, delete or rotate"
            )
        mask_id = pieces.needed(
            tokenizer, "denoising", "mask_token" if self.rate or self.token_mask else "eos_token"
        )
        stops = pieces.full_stops(tokenizer, model.vocab_size) if self.permute_sentences else None
        first, last = pieces.ends(tokenizer)
        start = rows.decoder_start("denoising", model)

        def corrupted(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            text = text if stops is None else permuted(text, stops, rng)
            text = masked(text, mask_id, self.token_mask, rng) if self.token_mask else text
            text = deleted(text, self.delete, rng) if self.delete else text
            text = infilled(text, mask_id, self.rate, self.mean_span, rng) if self.rate else text
            return rotated(text, rng) if self.rotate and rng.random() < self.rotate else text

        def of_document(ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            inner = rows.text_of(ids, first, last)
            text = ids[inner]
            return (
                np.concatenate([ids[: inner.start], corrupted(text, rng), ids[inner.stop :]])
                if len(text)
                else ids
            ), ids

        def fields(row: Row, rng: np.random.Generator, lengths: tuple[int, int]) -> Fields:
            return rows.sides(row, of_document, start, rng, lengths)

        def lengths(packed: Packed) -> tuple[int, int]:
            return packed.length, packed.length

        return Transform(fields, lengths)
