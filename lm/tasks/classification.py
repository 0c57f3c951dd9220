"""Classification of texts or pairs of texts, and regression (Devlin et al. 2019, section 4.1)."""

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
from lm.models.config import ConfigError, ModelConfig
from lm.tasks import labels as given
from lm.tasks.labels import RowTask
from lm.tasks.task import Shown


@dataclasses.dataclass(frozen=True)
class Classification(RowTask):
    """Predict the label of a text."""

    field: str = "text"  # field of the text
    pair_field: str = ""  # field of the second text of a pair; "" = no pairs
    label_field: str = "label"  # field of the label
    labels: tuple[str, ...] = ()  # names of the labels; () = those of the data, sorted
    regression: bool = False  # the label is a number, learned by its squared error

    head: ClassVar[str] = "sequence_classification"
    heads: ClassVar[tuple[str, ...]] = (head,)
    by_row: ClassVar[bool] = True
    evaluation: ClassVar[str] = "--task=classification --data=FILES"
    encoding: ClassVar[Callable] = staticmethod(label_rows.texts)

    def check(self, config) -> None:
        super().check(config)
        given.check_labels(self.labels)
        if self.regression and self.labels:
            raise ConfigError(
                f"task.labels={self.labels}: values have none; set them to (), or regression=False"
            )

    def record(self, row, where: str) -> labelled.Text:
        return labelled.text(
            row, where, self.field, self.pair_field, self.label_field, self.regression
        )

    def shape(self, length: int, model: ModelConfig) -> Shape:
        pairs = bool(self.pair_field)
        return Shape(length, pairs and model.type_vocab_size > 1, pairs, framed=not model.causal)

    def head_fields(self, config, sources, model: ModelConfig) -> dict:
        names = () if self.regression else given.names_of(self, self.labels, sources, model)
        return given.named(names, self.head, model)

    def names(self, model: ModelConfig) -> tuple[str, ...]:
        return () if model.n_labels == 1 else labelled.class_names(model)

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        return {"labels": (1,)} | super().fields(length, model)

    def loss(self, model, params: dict, batch: Batch, rng: jax.Array | None = None) -> Loss:
        """Cross-entropy of the class `batch.labels` [B, 1], summed over rows with a text.

        With a single label it is the squared error. Metrics: accuracy, for classes.
        """
        logits = given.logits_of(model, params, batch, rng)
        real = given.real(batch)
        if model.config.n_labels == 1:
            errors = jnp.square(logits[:, 0] - given.labels_of(batch)[:, 0])
            return Loss.of(jnp.sum(real * errors), jnp.sum(real))
        wanted = given.labels_of(batch)[:, 0].astype(jnp.int32)
        hits = real * (logits.argmax(-1) == wanted)
        total = jnp.sum(real * given.cross_entropy(logits, wanted))
        return Loss.of(total, jnp.sum(real), accuracy=jnp.sum(hits))

    def shown(self, row, spelled, names) -> Shown:
        label = float(row["labels"][0])
        untrained = [False] * len(row["tokens"])
        return Shown(untrained, {}, (label,), f"label {given.spelled_label(label, names)}")
