"""Denoising: write a document of which a corrupted copy is read (BART, Lewis et al. 2020, section 2.2).

The corruptions are those of the paper's final models: text infilling, and sentence permutation.
"""

import numpy as np

from lm.data.packing import Packed
from lm.models.config import ModelConfig
from lm.objectives import pieces, rows
from lm.objectives.objective import Fields, Row, Transform, share


def infilled(text: np.ndarray, mask_id: int, rate: float, mean_span: float, rng: np.random.Generator) -> np.ndarray:
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
    lengths = rng.permutation(np.delete(lengths, empty[max(0, budget - len(lengths) + len(empty)) :]))
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


def denoising(tokenizer, config: ModelConfig, *, rate: float = 0.3, mean_span: float = 3.0, permute_sentences: bool = False) -> Transform:
    """The encoder reads each document permuted, if asked for, and infilled; the decoder writes the whole of it.

    The tokens that begin and end a document stand on both sides and stay in their places. Rows must be packed `whole`. Raises ConfigError
    for shares that make no sense, and for a tokenizer without a mask token or, with `permute_sentences`, full stops.
    """
    share("denoising.rate", rate)
    share("denoising.mean_span", mean_span, most=1000)
    mask_id = pieces.needed(tokenizer, "denoising", "mask_token")
    stops = pieces.full_stops(tokenizer, config.vocab_size) if permute_sentences else None
    first, last = pieces.ends(tokenizer)
    start = rows.decoder_start("denoising", config)

    def of_document(ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        inner = rows.text_of(ids, first, last)
        text = ids[inner]
        if not len(text):
            return ids, ids
        text = text if stops is None else permuted(text, stops, rng)
        return np.concatenate([ids[: inner.start], infilled(text, mask_id, rate, mean_span, rng), ids[inner.stop :]]), ids

    def fields(row: Row, rng: np.random.Generator, lengths: tuple[int, int]) -> Fields:
        return rows.sides(row, of_document, start, rng, lengths)

    def lengths(packed: Packed) -> tuple[int, int]:
        return packed.length, packed.length

    return Transform(fields, lengths)
