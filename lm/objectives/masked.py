"""Masked language modelling: predict tokens that were hidden (BERT, Devlin et al. 2019, section 3.1 and appendix A.1).

Masks are drawn anew whenever a row is read, so that no epoch repeats them (RoBERTa, Liu et al. 2019, section 4.1).
"""

import numpy as np

from lm.models.config import ConfigError, ModelConfig
from lm.objectives import pieces
from lm.objectives.objective import Fields, Row, Transform, share


def masked(
    tokenizer,
    config: ModelConfig,
    *,
    rate: float = 0.15,
    mask: float = 0.8,
    random: float = 0.1,
    whole_words: bool = False,
):
    """Each token is chosen with probability `rate`, by itself or with its whole word, and is the only kind with a loss.

    A chosen token is read as the mask token with probability `mask`, as any ordinary token with probability `random`, and as itself
    otherwise. Special tokens are never chosen. Rows must be packed `whole`. Raises ConfigError for a model that reads from left to
    right, for shares that make no sense, and for a tokenizer without a mask token or, with `whole_words`, without words.
    """
    share("masked.rate", rate)
    if not 0.0 <= min(mask, random) <= mask + random <= 1.0 + 1e-9:
        raise ConfigError(
            f"objective.masked.mask={mask} and objective.masked.random={random}: expected shares that sum to at most 1"
        )
    if config.causal:
        raise ConfigError(
            "objective 'masked' needs model.causal=False: tokens on both sides tell what is hidden"
        )
    mask_id = pieces.needed(tokenizer, "masked", "mask_token")
    special = pieces.special(tokenizer, config.vocab_size)
    ordinary = np.flatnonzero(~special[: len(tokenizer)])
    continues = pieces.continues(tokenizer, config.vocab_size) if whole_words else None

    def fields(row: Row, rng: np.random.Generator, lengths: tuple[int, int]) -> Fields:
        targets, segments = (np.asarray(row[name], np.int32) for name in ("targets", "segments"))
        chosen = rng.random(len(targets)) < rate
        if continues is not None:  # the draw of a word's first token is its word's
            starts = (
                ~continues[targets]
                | special[np.roll(targets, 1)]
                | (segments != np.roll(segments, 1))
            )
            starts[0] = True
            chosen = chosen[np.maximum.accumulate(np.where(starts, np.arange(len(targets)), 0))]
        chosen &= (segments > 0) & ~special[targets]
        draw, others = (
            rng.random(len(targets)),
            ordinary[rng.integers(len(ordinary), size=len(targets))],
        )
        seen = np.where(draw < mask, mask_id, np.where(draw < mask + random, others, targets))
        tokens = np.where(chosen, seen, targets)
        return {
            "tokens": tokens,
            "targets": targets,
            "weights": chosen.astype(np.float32),
            "segments": segments,
        }

    return Transform(fields)
