"""Prefix language modelling: continue a document from a random point.

See Raffel et al. 2020, section 3.2.3, and Liu et al. 2018. This is for decoders, whose attention
stays causal over the prefix: unlike next_token, the prefix carries no loss. It teaches to continue
contexts of every length, as instruct tuning does.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from lm.models.config import ModelConfig
from lm.tasks import rows
from lm.tasks.task import Fields, Row, Transform
from lm.tasks.text import TextTask


@dataclasses.dataclass(frozen=True)
class PrefixLM(TextTask):
    """Predict a document's tokens after a random prefix."""

    heads: ClassVar[tuple[str, ...]] = ("causal_lm",)
    evaluation: ClassVar[str] = "--data=FILES"

    def transform(self, tokenizer, model: ModelConfig) -> Transform:
        """Transform that removes the loss from a random prefix of each document.

        Of n predictions the first 1 to n - 1 (uniformly drawn) carry no loss; a single one keeps
        it.
        """

        def fields(row: Row, rng: np.random.Generator, lengths: tuple[int, int]) -> Fields:
            tokens, targets, segments = (
                np.asarray(row[name], np.int32) for name in ("tokens", "targets", "segments")
            )
            weights = (segments > 0).astype(np.float32)
            for _, at in rows.documents(row):
                if at.stop - at.start > 1:
                    weights[at.start : rng.integers(at.start + 1, at.stop)] = 0.0
            return {"tokens": tokens, "targets": targets, "weights": weights, "segments": segments}

        return Transform(fields)
