"""A user's task: tell which tokens of a text were replaced (ELECTRA's data, Clark et al. 2020)."""

import dataclasses
from typing import ClassVar

import numpy as np

from lm import families
from lm.models import build
from lm.tasks.task import Transform
from lm.tasks.text import TextTask
from lm.tasks.token_classification import TokenClassification


@dataclasses.dataclass(frozen=True)
class Replaced(TextTask):
    """A share of the tokens is replaced by tokens drawn from the row itself."""

    rate: float = 0.15  # share of tokens that are drawn anew

    heads: ClassVar[tuple[str, ...]] = ("token_classification",)
    makes_head: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    evaluator: ClassVar[str] = "means"

    def prepare(self, start, config, sources, kept):
        start, names = super().prepare(start, config, sources, kept), ("original", "replaced")
        head = families.other_head(
            start.model.config, "token_classification", n_labels=2, label_names=names
        )
        return dataclasses.replace(start, model=build(head))

    def transform(self, tokenizer, model):
        def fields(row, rng, lengths):
            text, real = np.asarray(row["targets"], np.int32), np.asarray(row["segments"]) > 0
            # Evaluation pads its last batch with empty rows.
            drawn = rng.choice(text[real] if real.any() else text, len(text)).astype(np.int32)
            tokens = np.where((rng.random(len(text)) < self.rate) & real, drawn, text)
            return {
                "tokens": tokens,
                "targets": (tokens != text).astype(np.int32),
                "weights": real.astype(np.float32),
                "segments": np.asarray(row["segments"], np.int32),
            }

        return Transform(fields)

    loss = TokenClassification.loss
