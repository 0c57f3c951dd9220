"""Classification of words (Devlin et al. 2019, section 5.3)."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch
from lm.data.encode import labels as label_rows
from lm.data.records import labels as labelled
from lm.losses import Loss
from lm.models.config import ModelConfig
from lm.tasks import labels as given
from lm.tasks.labels import LabelTask
from lm.tasks.task import Shown


@dataclasses.dataclass(frozen=True)
class TokenClassification(LabelTask):
    """Predict the tag of every word. The first token of a word carries its tag."""

    field: str = "text"  # field of the words: a list, or a text with spaces
    label_field: str = "tags"  # field of the tags
    labels: tuple[str, ...] = ()  # names of the tags; () = those of the data, sorted

    head: ClassVar[str] = "token_classification"
    heads: ClassVar[tuple[str, ...]] = (head,)
    by_row: ClassVar[bool] = True
    evaluation: ClassVar[str] = "--task=token_classification --data=FILES"
    encoding: ClassVar[Callable] = staticmethod(label_rows.words)

    def check(self, config) -> None:
        super().check(config)
        given.check_labels(self.labels)

    def record(self, row, where: str) -> labelled.Words:
        return labelled.words(row, where, self.field, self.label_field)

    def head_fields(self, config, sources, model: ModelConfig) -> dict:
        names = given.names_of(self, self.labels, sources, model)
        return given.named(names, self.head, model)

    def loss(self, model, params: dict, batch: Batch, rng: jax.Array | None = None) -> Loss:
        """Weighted cross-entropy of the classes `batch.targets` [B, T], summed.

        Metrics: accuracy, with the same weights.
        """
        logits = given.logits_of(model, params, batch, rng)
        hits = batch.weights * (logits.argmax(-1) == batch.targets)
        total = jnp.sum(batch.weights * given.cross_entropy(logits, batch.targets))
        return Loss.of(total, jnp.sum(batch.weights), accuracy=jnp.sum(hits))

    def shown(self, row, spelled, names) -> Shown:
        trained = np.asarray(row["weights"]) > 0
        targets = {
            int(at): given.spelled_label(row["targets"][at], names)
            for at in np.flatnonzero(trained)
        }
        return Shown(trained.tolist(), targets)
