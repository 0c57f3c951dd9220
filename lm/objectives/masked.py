"""Masked language modelling: predict hidden tokens (BERT, Devlin et al. 2019).

See section 3.1 and appendix A.1. Masks are drawn anew whenever a row is read, so no epoch repeats
them (RoBERTa, Liu et al. 2019, section 4.1).
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
    """Transform that selects tokens with probability `rate`; only they have a loss.

    With `whole_words` a word's tokens are selected together. A selected token becomes the mask
    token with probability `mask`, a random ordinary token with probability `random`, and else
    stays. Special tokens are never selected. Rows must be packed with `whole`.

    Raises ConfigError for a causal model, for invalid shares, and for a tokenizer without a mask
    token or, with `whole_words`, without word boundaries.
    """
    share("masked.rate", rate)
    if not 0.0 <= min(mask, random) <= mask + random <= 1.0 + 1e-9:
        raise ConfigError(
            f"objective.masked.mask={mask} and objective.masked.random={random}: "
            "expected shares that sum to at most 1"
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
        if continues is not None:  # the draw of a word's first token decides for the whole word
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
