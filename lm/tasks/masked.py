"""Masked language modelling: predict hidden tokens (BERT, Devlin et al. 2019).

See section 3.1 and appendix A.1. Masks are drawn anew whenever a row is read, so no epoch repeats
them (RoBERTa, Liu et al. 2019, section 4.1).
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from lm.models.config import ConfigError, ModelConfig
from lm.tasks import pieces
from lm.tasks.task import Fields, Row, Transform, share
from lm.tasks.text import TextTask


@dataclasses.dataclass(frozen=True)
class Masked(TextTask):
    """Predict hidden tokens of a document from those on both sides."""

    rate: float = 0.15  # share of tokens to predict
    mask: float = 0.8  # share of these that are replaced by the mask token
    # Share of these that are replaced by a random token; the others are unchanged.
    random: float = 0.1
    whole_words: bool = False  # mask whole words instead of tokens

    heads: ClassVar[tuple[str, ...]] = ("masked_lm",)
    special: ClassVar[Mapping] = {"mask": True}
    evaluation: ClassVar[str] = "--data=FILES"
    whole: ClassVar[bool] = True
    sparse: ClassVar[bool] = True

    def transform(self, tokenizer, model: ModelConfig) -> Transform:
        """Transform that selects tokens with probability `rate`; only they have a loss.

        With `whole_words` a word's tokens are selected together. A selected token becomes the mask
        token with probability `mask`, a random ordinary token with probability `random`, and else
        stays. Special tokens are never selected.

        Raises ConfigError for a causal model, for invalid shares, and for a tokenizer without a
        mask token or, with `whole_words`, without word boundaries.
        """
        share("rate", self.rate)
        if not 0.0 <= min(self.mask, self.random) <= self.mask + self.random <= 1.0 + 1e-9:
            raise ConfigError(
                f"task.mask={self.mask} and task.random={self.random}: "
                "expected shares that sum to at most 1"
            )
        if model.causal:
            raise ConfigError(
                f"task {self.name!r} needs model.causal=False: tokens on both sides tell what is "
                "hidden"
            )
        mask_id = pieces.needed(tokenizer, self.name, "mask_token")
        special = pieces.special(tokenizer, model.vocab_size)
        ordinary = np.flatnonzero(~special[: len(tokenizer)])
        continues = pieces.continues(tokenizer, model.vocab_size) if self.whole_words else None

        def fields(row: Row, rng: np.random.Generator, lengths: tuple[int, int]) -> Fields:
            targets, segments = (
                np.asarray(row[name], np.int32) for name in ("targets", "segments")
            )
            chosen = rng.random(len(targets)) < self.rate
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
            seen = np.where(
                draw < self.mask, mask_id, np.where(draw < self.mask + self.random, others, targets)
            )
            tokens = np.where(chosen, seen, targets)
            return {
                "tokens": tokens,
                "targets": targets,
                "weights": chosen.astype(np.float32),
                "segments": segments,
            }

        return Transform(fields)
