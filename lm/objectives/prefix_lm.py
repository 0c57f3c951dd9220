"""Prefix language modelling: continue a document from a random point (Raffel et al. 2020, section 3.2.3; Liu et al. 2018).

Here for decoders, whose attention stays causal over the prefix too: what differs from next_token is where the loss is, not what sees
what. It teaches to continue contexts of every length, as instruct tuning later does.
"""

import numpy as np

from lm.models.config import ModelConfig
from lm.objectives import rows
from lm.objectives.objective import Fields, Row, Transform


def prefix_lm(tokenizer, config: ModelConfig) -> Transform:
    """Of a document's n predictions the first 1 to n - 1, every number as likely as another, carry no loss (none of a single one)."""

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
