"""Base class of tasks on labelled texts and groups of texts."""

import abc
import dataclasses
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm import families
from lm.batch import Batch
from lm.data.encode import labels as label_rows
from lm.data.encode.labels import Encoded, Shape
from lm.data.packed import Packed
from lm.data.read.sources import DataError
from lm.data.records import labels as labelled
from lm.data.records.labels import Record
from lm.heads import encoder_of, with_head
from lm.models import build
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.task import Start, Task, Tools

log = logging.getLogger(__name__)

CLASSIFIER = "head/classifier"  # path of the parameters that give labels


@dataclasses.dataclass(frozen=True)
class LabelTask(Task):
    """Task on records with labels, whose head replaces that of the model.

    head: of the model. encoding: of a record, a function of lm.data.encode.labels. new_parameters:
    path of parameters that the head draws at random, or "".
    """

    max_long: float = 0.01  # maximum share of texts that are longer than a row, and are cut

    head: ClassVar[str]
    encoding: ClassVar[Callable[..., Iterator[Encoded]]]
    makes_head: ClassVar[bool] = True
    new_parameters: ClassVar[str] = CLASSIFIER
    usual_length: ClassVar[int] = 512  # tokens of a text in evaluation, if a run does not tell

    @abc.abstractmethod
    def record(self, row: Mapping, where: str) -> Record:
        """Make a record of a row. Raises BadRecord."""

    def shape(self, length: int, model: ModelConfig) -> Shape:
        """Layout of the rows."""
        return Shape(length, framed=not model.causal)

    def head_fields(self, config, sources: Sequence, model: ModelConfig) -> dict[str, Any]:
        """Fields of the ModelConfig that the head is made with. Raises ConfigError, DataError."""
        return {}

    def check(self, config) -> None:
        if not 0 <= self.max_long <= 1:
            raise ConfigError(f"task.max_long={self.max_long}: expected a share between 0 and 1")

    def prepare(self, start: Start, config, sources, kept) -> Start:
        """Give the model the head of the task, unless it has it. A new one is drawn from the seed.

        Of an encoder-decoder the encoder alone gets it, and the decoder is dropped.

        Raises ConfigError for a model that cannot have it, and when low-rank adapters would leave
        it frozen.
        """
        loaded = start.model.config
        if start.tokenizer is None:
            raise ConfigError(
                "labelled texts need a tokenizer, and neither the config nor init_from has one"
            )
        if loaded.encoder_layers:
            log.warning(
                "task %r trains the encoder of this %s model: its decoder is dropped",
                self.name,
                loaded.family,
            )
        model, params = encoder_of(start.model, start.params)
        c = model.config
        fields = self.head_fields(config, sources, loaded)
        if c.head == self.head and all(getattr(c, name) == fields[name] for name in fields):
            return start
        lora, new = config.adaptation.lora, self.new_parameters
        if lora.rank and new and not re.search(lora.pattern, new):
            raise ConfigError(
                f"adaptation.lora.pattern={lora.pattern!r} leaves {new} frozen, and it is "
                f"drawn at random, as {config.init_from} has no "
                "such head: add head, as in '(attention|cross|mlp|ssm|head)/'"
            )
        # Position ids of some families start after the padding id.
        padded = c if c.pad_token_id is not None else c.replace(pad_token_id=0)
        if params is None:
            headed = families.other_head(padded, self.head, **fields)
        else:
            key = jax.random.key(config.seed)
            model, params = with_head(build(padded), params, self.head, key, **fields)
            headed = model.config
        model = build(headed.replace(pad_token_id=c.pad_token_id))
        return dataclasses.replace(start, model=model, params=params)

    def evaluated(self, length: int) -> "LabelTask":
        """The task with the defaults of evaluation."""
        return self

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        return {"types": (length,)} if self.shape(length, model).types else {}

    def read(
        self,
        files: str,
        names: Sequence[str],
        max_bad_share: float = 0.0,
        tally=None,
    ) -> list[Any]:
        """Read the records of the files. names: the known labels, or () for any."""
        return labelled.read(
            files, self.record, names=names, max_bad_share=max_bad_share, tally=tally
        )

    def encode(
        self, records: Sequence, tokenizer, shape: Shape, names: Sequence[str]
    ) -> Iterator[Encoded]:
        """Encode records as rows."""
        return label_rows.encode(records, tokenizer, self.encoding, shape, names)

    def names(self, model: ModelConfig) -> tuple[str, ...]:
        """Label names of a model; () for a numeric label, or none."""
        return labelled.class_names(model)

    def rows(self, files: str, part: str, tools: Tools) -> Packed:
        own = {name: value for name, value in vars(self).items() if name != "max_long"}
        return label_rows.pack_files(
            files,
            tools.tokenizer,
            self.record,
            self.encoding,
            self.shape(tools.length, tools.model),
            self.names(tools.model),
            tools.cache,
            identity=[type(self).__name__, own],
            max_bad_share=tools.max_bad_share,
            max_long=self.max_long,
            tally=tools.tally,
            share=0.0 if part == "all" else tools.holdout_share,
            held_out=part == "holdout",
        )

    def compared(self, packed: Packed) -> Packed:
        return dataclasses.replace(packed, targets=packed.tokens)


class RowTask(LabelTask):
    """Label task whose loss has a weight for each row, not for each token."""

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {"loss": jnp.sum(real(batch))}


def check_labels(labels: Sequence[str]) -> None:
    """Raise ConfigError unless `labels` is () or at least two different names."""
    if (
        len(labels) == 1
        or len(set(labels)) != len(labels)
        or not all(isinstance(label, str) and label for label in labels)
    ):
        raise ConfigError(
            f"task.labels={tuple(labels)}: expected at least two different names, or () for "
            "those of the data"
        )


def names_of(task: LabelTask, labels: Sequence[str], sources: Sequence, c: ModelConfig):
    """Label names: of the config, else of a model with this head, else of all records, sorted.

    sources: configs of the sources of training data. Raises DataError for a single label.
    """
    from lm import tasks

    if labels:
        return tuple(labels)
    if c.head == task.head:
        if c.n_labels == 1:
            raise ConfigError("this model gives a value: set task.regression, or task.labels")
        return labelled.class_names(c)
    records = []
    for source in sources:
        own = tasks.of(source)
        if not isinstance(own, LabelTask):
            raise DataError(f"a source has the task {own.name!r}, and no labels")
        records += own.read(source.data.files, (), source.data.max_bad_share)
    return labelled.names_of(records)


def named(names: tuple[str, ...], head: str, c: ModelConfig) -> dict[str, Any]:
    """Fields of a head with these label names; default names are not stored."""
    default = c.head == head and not c.label_names and names == labelled.class_names(c)
    return {"n_labels": len(names) or 1, "label_names": () if default else names}


def logits_of(model, params: dict, batch: Batch, rng) -> jax.Array:
    """Logits of the model's head, float32. Dropout is on when `rng` is given."""
    rngs = None if rng is None else {"dropout": rng}
    return model.apply({"params": params}, batch, rngs=rngs).logits.astype(jnp.float32)


def labels_of(batch: Batch) -> jax.Array:
    """Labels of the batch, float32 [B, K]."""
    if batch.labels is None:
        raise ValueError(
            "the batch has no labels: give them to Batch, float32 [B, 1] of a class, [B, "
            "2] of a span"
        )
    return batch.labels


def real(batch: Batch) -> jax.Array:
    """1 for every row with a token, float32 [B]; an evaluation's last batch has empty rows."""
    return (batch.segments > 0).any(axis=1).astype(jnp.float32)


def cross_entropy(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """Compute -log p(wanted), [...], from logits [..., N]."""
    chosen = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def spelled_label(label: float, names: Sequence[str]) -> str:
    """Name of a class, or the number itself."""
    return names[int(label)] if names else f"{np.float32(label):g}"
