"""Extractive question answering: the answer's span in a context (Devlin et al. 2019, 4.2)."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm.batch import Batch
from lm.data.encode import labels as label_rows
from lm.data.encode.labels import Shape
from lm.data.records import labels as labelled
from lm.losses import Loss
from lm.models.config import ModelConfig
from lm.tasks import labels as given
from lm.tasks.labels import RowTask
from lm.tasks.task import Shown, check_stride


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(RowTask):
    """Predict the first and last token of the answer. Records have SQuAD's fields."""

    # Tokens between the starts of windows of a context longer than a row; 0 = no overlap.
    stride: int = 0

    head: ClassVar[str] = "question_answering"
    heads: ClassVar[tuple[str, ...]] = (head,)
    by_row: ClassVar[bool] = True
    evaluation: ClassVar[str] = "--task=question_answering --data=FILES"
    usual_length: ClassVar[int] = 384
    encoding: ClassVar[Callable] = staticmethod(label_rows.windows)

    def check(self, config) -> None:
        super().check(config)
        check_stride(self.stride, config.length)

    def record(self, row, where: str) -> labelled.Question:
        return labelled.question(row, where)

    def shape(self, length: int, model: ModelConfig) -> Shape:
        return Shape(length, model.type_vocab_size > 1, pairs=True, stride=self.stride)

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        return {"labels": (2,)} | super().fields(length, model)

    def evaluated(self, length: int) -> "QuestionAnswering":
        """Windows overlap by two thirds, unless the stride is given."""
        return dataclasses.replace(self, stride=self.stride or length // 3)

    def loss(self, model, params: dict, batch: Batch, rng: jax.Array | None = None) -> Loss:
        """Mean cross-entropy of an answer's first and last token, summed over rows.

        `batch.labels` [B, 2] are their indices. Each is a choice among the row's tokens without
        padding. Metrics: exact, rows with both right.
        """
        logits = given.logits_of(model, params, batch, rng)
        logits = jnp.where((batch.segments > 0)[..., None], logits, -1e9)
        wanted, real = given.labels_of(batch).astype(jnp.int32), given.real(batch)
        both = given.cross_entropy(logits[..., 0], wanted[:, 0]) + given.cross_entropy(
            logits[..., 1], wanted[:, 1]
        )
        hits = real * (logits.argmax(1) == wanted).all(-1)
        return Loss.of(jnp.sum(real * both) / 2, jnp.sum(real), exact=jnp.sum(hits))

    def shown(self, row, spelled, names) -> Shown:
        labels = (float(row["labels"][0]), float(row["labels"][1]))
        first, last = (int(label) for label in labels)
        held = last > 0  # else this window does not hold the answer
        trained = [held and first <= at <= last for at in range(len(row["tokens"]))]
        said = (
            f"answer {spelled(row['tokens'][first : last + 1])}"
            if held
            else "the answer is not in this window: the first token stands for it"
        )
        return Shown(trained, {}, labels, said)
