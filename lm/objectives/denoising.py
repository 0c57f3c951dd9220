"""Denoising: write a document of which a corrupted copy is read (BART, Lewis et al. 2020, section 2.2).

The paper's final models have text infilling and sentence permutation; its others are here too, and any of them together.
"""

import numpy as np

from lm.data.packing import Packed
from lm.models.config import ConfigError, ModelConfig
from lm.objectives import pieces, rows
from lm.objectives.objective import Fields, Row, Transform, share


def infilled(
    text: np.ndarray, mask_id: int, rate: float, mean_span: float, rng: np.random.Generator
) -> np.ndarray:
    """The text [n] with spans of Poisson(mean_span) tokens replaced by one mask each; a span of none inserts one. At most n tokens.

    Spans are drawn until they cover `rate` of the tokens, rounded up, the last one cut to that number; they do not overlap, and every way
    to lay them out is equally likely. Spans of none are left out where the result would be longer than the text (of a few tokens).
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
    # A random order of the tokens that stay and the spans; the tokens keep theirs.
    span = rng.permutation(len(text) - budget + len(lengths)) < len(lengths)
    covers = np.ones(len(span), np.int64)
    covers[span] = lengths
    at = np.cumsum(covers) - covers
    return np.where(span, mask_id, text[np.minimum(at, len(text) - 1)]).astype(np.int32)


def permuted(text: np.ndarray, stops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The text [n] with its sentences in random order; a sentence ends after the last of a run of full stops, `stops` bool [V]."""
    stop = stops[text]
    sentences = np.split(text, np.flatnonzero(stop[:-1] & ~stop[1:]) + 1)
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


def masked(text: np.ndarray, mask_id: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """The text [n] with each token, by the chance `rate`, replaced by a mask."""
    return np.where(rng.random(len(text)) < rate, mask_id, text).astype(np.int32)


def deleted(text: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """The text [n] without tokens that are each left out by the chance `rate`; one is kept where all would go."""
    draw = rng.random(len(text))
    return text[(draw >= rate) | ((draw < rate).all() & (draw == draw.max()))]


def rotated(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The text [n] from one of its tokens on, each as likely as another, and then what is before it."""
    return np.roll(text, -int(rng.integers(len(text))))


def denoising(
    tokenizer, config: ModelConfig, *, rate: float = 0.3, mean_span: float = 3.0, permute_sentences: bool = False,
    token_mask: float = 0.0, delete: float = 0.0, rotate: float = 0.0,
) -> Transform:  # fmt: skip
    """The encoder reads each document corrupted; the decoder writes the whole of it.

    What is asked for is done in this order, which is that of the paper's code where that has it: sentences permuted, tokens masked, tokens
    deleted, spans infilled (`rate`), and the share `rotate` of the texts rotated. The tokens that begin and end a document stand on both
    sides and stay in their places. Rows must be packed `whole`. Raises ConfigError for shares that make no sense or corrupt nothing, and
    for a tokenizer without a mask token, where it is used, or, with `permute_sentences`, full stops.
    """
    for name, value in {
        "rate": rate,
        "token_mask": token_mask,
        "delete": delete,
        "rotate": rotate,
    }.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"objective.denoising.{name}={value}: expected a share from 0 to 1")
    share("denoising.mean_span", mean_span, most=1000)
    if not (rate or permute_sentences or token_mask or delete or rotate):
        raise ConfigError(
            "objective.denoising.rate=0 and nothing else corrupts the text: raise it, or set token_mask, delete or rotate"
        )
    mask_id = pieces.needed(
        tokenizer, "denoising", "mask_token" if rate or token_mask else "eos_token"
    )
    stops = pieces.full_stops(tokenizer, config.vocab_size) if permute_sentences else None
    first, last = pieces.ends(tokenizer)
    start = rows.decoder_start("denoising", config)

    def corrupted(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        text = text if stops is None else permuted(text, stops, rng)
        text = masked(text, mask_id, token_mask, rng) if token_mask else text
        text = deleted(text, delete, rng) if delete else text
        text = infilled(text, mask_id, rate, mean_span, rng) if rate else text
        return rotated(text, rng) if rotate and rng.random() < rotate else text

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
