"""Scores of the labels that a classifier gives, which are not means over rows."""

import dataclasses

import jax
import numpy as np

from lm import tasks
from lm.data import batches
from lm.data.records import labels as labelled
from lm.distributed import sharding
from lm.evaluation import labels, predictions
from lm.evaluation.evaluators.evaluator import Evaluator, Prepared, Result, Tools
from lm.models.config import ConfigError
from lm.tasks.labels import logits_of

HEAD = "sequence_classification"


@dataclasses.dataclass(frozen=True)
class Labels(Evaluator):
    """Accuracy, F1 and Matthews correlation of classes; correlations of values."""

    files: str = ""
    max_rows: int = 0  # texts that are read; 0 = all

    def check(self, config) -> None:
        if not self.files:
            raise ConfigError("files is not set: give paths or globs")
        if self.max_rows < 0:
            raise ConfigError(f"max_rows={self.max_rows}: expected 0 or more")
        task = tasks.of(config)
        if HEAD not in task.heads:
            raise ConfigError(
                f"type='labels' scores the task 'classification', and task.name={task.name!r}; use "
                "type='rows'"
            )

    def prepare(self, tools: Tools) -> Prepared:
        packed, c = tools.rows(self.files), tools.model.config
        names = labelled.class_names(c) if c.n_labels > 1 else ()
        wanted = np.asarray(packed.extra["labels"])[: self.max_rows or None, 0]

        run = jax.jit(
            lambda params, batch: logits_of(tools.model, params, batch, None),
            out_shardings=sharding.replicated(tools.mesh),
        )
        shape = (tools.batch_size, packed.length)
        rows = sharding.batch_sharding(tools.mesh, shape, tools.activations)

        def evaluate(params: dict, step: int) -> Result:
            with sharding.activate(tools.mesh, tools.activations):
                found = [
                    jax.device_get(run(params, batch))[numbers >= 0]
                    for numbers, batch in batches.in_order(
                        packed, tools.batch_size, rows, len(wanted), tools.transform, config=c
                    )
                ]
            return result_of(np.concatenate(found), wanted, names)

        return evaluate


def result_of(logits: np.ndarray, wanted: np.ndarray, names: tuple[str, ...]) -> Result:
    """Result of logits [N, K] for wanted labels [N]; names: of the K classes, or () for values.

    "f1" is that of the second of two classes, as in GLUE.
    """
    if not names:
        values = predictions.numbers_of_values(logits[:, 0], wanted)
        return Result(values, predictions.worded_values(values, len(wanted)))
    classes = wanted.astype(np.int64)
    scored = labels.classified(logits.argmax(-1), classes)
    chosen = logits[np.arange(len(classes)), classes]
    found: dict[str, float | None] = {
        "loss": float(np.mean(np.logaddexp.reduce(logits, axis=-1) - chosen)),
        "accuracy": scored.accuracy,
        "macro_f1": scored.macro_f1,
        "matthews": scored.matthews,
    }
    if len(names) == 2:
        found["f1"] = scored.per_class.get(1, 0.0)
    return Result(found, predictions.worded(scored, names, "texts"))
