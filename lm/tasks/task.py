"""Task: everything that training knows about one objective.

A task is a frozen dataclass. Its fields are `config.task`: options with a default and a comment
each. `Task` has the defaults of all methods, so a task defines only what differs; docs/tasks.md
shows one in 40 lines. Methods run on the host, except `loss` and `weights`, which are compiled.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch, Field
from lm.data.packed import Packed
from lm.data.read.sources import Tally
from lm.data.source import Source, SourceTools
from lm.data.templates import Template
from lm.losses import Loss
from lm.models import LanguageModel
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.models import Aux, Models

# tokens, targets, segments, [T] each, and Packed.extra: a packed row
Row = Mapping[str, np.ndarray]
# one row of lm.Batch's fields; without positions, those within each document are used
Fields = dict[str, np.ndarray]

# In place of files in eval.data: the rows that data.holdout_share holds out, and the tasks of
# data.files that are excluded from training.
HOLDOUT, HELD_OUT = "holdout_share", "hold_out"


def as_packed(packed: Packed) -> tuple[int, int]:
    """Lengths (T, S) of unchanged rows: as packed, and 0 for the encoder."""
    return packed.length, 0


@dataclasses.dataclass(frozen=True)
class Transform:
    """What a task does to each row whenever it is read.

    fields: (row, the row's random generator, lengths) -> Fields. It works document by document; a
    document's tokens keep its segment number on both sides of an encoder-decoder. lengths: packed
    rows -> (T, S), the fixed lengths of the resulting rows and of their encoder's rows; S = 0
    without an encoder.
    """

    fields: Callable[[Row, np.random.Generator, tuple[int, int]], Fields]
    lengths: Callable[[Packed], tuple[int, int]] = as_packed


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from. A task may replace the head, the tokenizer's frame or the template.

    params: of init_from, or None. template: renders the records of instruct data, or None.
    """

    model: LanguageModel
    params: dict | None
    tokenizer: Any
    template: Template | None = None


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a task makes rows with. files: data.files. length: tokens per row.

    tally: counts what is read, or None. The other fields are those of the config and the run.
    """

    model: ModelConfig
    tokenizer: Any
    template: Template | None
    files: str
    length: int
    seed: int
    cache: pathlib.Path
    max_bad_share: float = 0.0
    holdout_share: float = 0.0
    tally: Tally | None = None


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the preview says about a row beside its tokens.

    trained: bool [T], tokens that carry the loss; None: those with a weight. targets: position ->
    text to predict there. labels: of the row. said: the labels in words.
    """

    trained: Sequence[bool] | None = None
    targets: Mapping[int, str] = dataclasses.field(default_factory=dict)
    labels: tuple[float, ...] = ()
    said: str = ""


class Task(abc.ABC):
    """Base class of tasks.

    Class attributes:

    * heads: the model heads that the loss is defined for. makes_head: `prepare` sets the head.
    * terms: names of the terms of the loss.
    * joint: the rows of a batch are compared with each other, so micro-batches cannot be summed;
      `loss` takes their number as `parts`.
    * by_row: no row's loss depends on other rows, so that devices may compute it for their own and
      reduce gradients once a step; a subclass with a `loss` of its own says so again.
    * noisy: the loss draws random numbers from `rng`, also without dropout; with `by_row`, those of
      a row come from its key (`lm.models.shards.row_keys`).
    * texts: texts of a row that do not attend to each other, in equal shares.
    * special: arguments of `tokenizers.bytes_only` for the special tokens that it needs.
    * synthetic: random tokens (data.synthetic_rows) can take the place of files.
    * renders: records are rendered by a template, so `Start.template` is set.
    * evaluator: evaluation of held-out rows: "perplexity", or "means" of the loss and its metrics.
    * evaluation: flags of lm.evaluate for a run, or "".
    * new_fields: batch fields that lm.batch.FIELDS does not have: name -> Field.
    """

    heads: ClassVar[tuple[str, ...]] = ()
    makes_head: ClassVar[bool] = False
    terms: ClassVar[tuple[str, ...]] = ("loss",)
    joint: ClassVar[bool] = False
    noisy: ClassVar[bool] = False
    by_row: ClassVar[bool] = False
    special: ClassVar[Mapping[str, Any]] = {}
    synthetic: ClassVar[bool] = False
    renders: ClassVar[bool] = False
    evaluator: ClassVar[str] = "means"
    evaluation: ClassVar[str] = ""
    new_fields: ClassVar[Mapping[str, Field]] = {}

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        if "loss" in vars(cls) and "by_row" not in vars(cls):
            cls.by_row = False  # what an inherited one says is of an inherited loss

    @property
    def name(self) -> str:
        """Name in configs: a short one of lm.tasks, or module:Class."""
        from lm import tasks

        return tasks.name_of(type(self))

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Factor of each term of the loss; 1 by default."""
        return {}

    @property
    def texts(self) -> int:
        """Number of texts of a row; see the class."""
        return 1

    def check(self, config) -> None:  # noqa: B027 most tasks have nothing to check
        """Raise ConfigError, naming task.FIELD, for options that are invalid or do not fit.

        config: the whole config of the run, or that of one source of a mixture.
        """

    def prepare(self, start: Start, config, sources: Sequence, kept: "Kept") -> Start:
        """Change the model, tokenizer or template that the run starts from.

        sources: the configs of all sources of training data. kept: templates of init_from and the
        run. Raises ConfigError or DataError.
        """
        return start

    def prepare_tokenizer(self, tokenizer):
        """Change the 'bytes' tokenizer before the model is made, such as by control tokens."""
        return tokenizer

    def longest(self, length: int) -> int:
        """Most tokens that a document of a row of `length` has on either side."""
        return length

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Batch fields beyond those of text: name in FIELDS or `new_fields` -> shape of a row."""
        return {}

    def aux(self, model: ModelConfig) -> dict[str, Aux]:
        """Models beside the run's `model`, by name; `loss` then takes them as `models=`."""
        return {}

    @abc.abstractmethod
    def rows(self, files: str, part: str, tools: Tools) -> Packed:
        """Pack the rows of `files`, or memory-map them from `tools.cache`.

        part: "train", "holdout" (what data.holdout_share holds out) or "all". Raises ConfigError
        and DataError.
        """

    def transform(self, tokenizer, model: ModelConfig) -> Transform | None:
        """What is done to a row whenever it is read; None = rows stay as packed.

        It is pure in the row and its random generator. Raises ConfigError if the tokenizer and the
        model do not fit.
        """
        return None

    def source(self, rows: Packed | Any, tools: SourceTools) -> Source | None:
        """What the steps read; None = the rows, shuffled and transformed, read ahead.

        rows: of `rows`, or a mixture of sources (lm.data.mixtures.Mixture). A source can make
        batches from the training state, such as with texts that the model writes.
        """
        return None

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Weight of every term in the whole batch; used where there are several; compiled."""
        return {"loss": jnp.sum(batch.weights)}

    @abc.abstractmethod
    def loss(self, model, params: dict, batch: Batch, rng: jax.Array | None = None) -> Loss:
        """Sums and weights of the loss; compiled. Dropout is on when `rng` is given.

        If `aux` declares models, the keyword `models` has them: name -> `lm.tasks.models.Beside`.
        """

    def stored(self, models: Models, batch: Batch) -> dict[str, jax.Array]:
        """Batch fields [B, T] of the models that `aux` declares `stored`; compiled."""
        return {}

    def likelihood(self) -> "Task":
        """The task with the loss alone, without regularisers such as label smoothing."""
        return self

    def shown(self, row: Row, spelled: Callable[[Any], str], names: Sequence[str]) -> Shown | None:
        """What the preview shows of a row; None: the tokens with a weight are trained.

        spelled: token ids -> text. names: of the model's labels.
        """
        return None

    def compared(self, packed: Packed) -> Packed:
        """Rows whose targets are the texts that the preview compares, to find copies."""
        return packed


@dataclasses.dataclass(frozen=True)
class Kept:
    """Descriptions of templates (lm.data.templates.remember): of init_from, and of the run."""

    base: Template | None = None
    there: Mapping | None = None


def share(name: str, value: float, least: float = 0.0, most: float = 1.0) -> float:
    """Return the value; ConfigError for task.`name` unless least < value <= most."""
    if not least < value <= most:
        raise ConfigError(
            f"task.{name}={value}: expected a number above {least:g}, at most {most:g}"
        )
    return value


def check_stride(stride: int, length: int) -> None:
    """Raise ConfigError for a task.stride that windows of `length` tokens cannot have."""
    if not 0 <= stride <= length:
        raise ConfigError(
            f"task.stride={stride}: expected at most length={length}, or 0 for windows that do "
            "not overlap"
        )
