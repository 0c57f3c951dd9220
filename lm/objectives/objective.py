"""Objective and Transform: how rows of text become a task, and the loss of that task.

A Transform runs on the host, in numpy.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lm.data.packing import Packed
from lm.models.config import ConfigError
from lm.objectives.loss import Loss

# tokens, targets, segments, [T] each: a row of lm.data.packing.Packed
Row = Mapping[str, np.ndarray]
# one row of lm.Batch's fields; without positions, those within each document are used
Fields = dict[str, np.ndarray]


def as_packed(packed: Packed) -> tuple[int, int]:
    """Lengths (T, S) of unchanged rows: as packed, and 0 for the encoder."""
    return packed.length, 0


@dataclasses.dataclass(frozen=True)
class Transform:
    """What an objective does to each row.

    fields: (row, the row's random generator, lengths) -> Fields. It works document by document; a
    document's tokens keep its segment number on both sides of an encoder-decoder. lengths: packed
    rows -> (T, S), the fixed lengths of the resulting rows and of their encoder's rows; S = 0
    without an encoder.
    """

    fields: Callable[[Row, np.random.Generator, tuple[int, int]], Fields]
    lengths: Callable[[Packed], tuple[int, int]] = as_packed


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss, the heads it is defined for, and how its rows are made.

    * loss: (model, params, batch, rng, chunk=0) -> Loss.
    * heads: the model heads it is defined for.
    * transform: (tokenizer or None, ModelConfig, **options of the config section objective.NAME) ->
      Transform; raises ConfigError if these do not fit together. None = rows stay as packed.
    * whole: the targets of a packed row are all tokens of each document (see `packing.encode`), for
      tasks that do not predict from left to right.
    * special: arguments of `tokenizers.bytes_only` for the special tokens that it needs.
    * longest: (T, **options) -> most tokens that a document of a packed row of T has on either
      side.
    * options: options of the config section that the loss takes.
    * joint: the rows of a batch are compared with each other, so micro-batches cannot be summed;
      the loss takes their number as `parts`.
    """

    loss: Callable[..., Loss]
    heads: tuple[str, ...]
    transform: Callable[..., Transform] | None = None
    whole: bool = False
    special: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    longest: Callable[..., int] = lambda length, **_: length
    options: tuple[str, ...] = ()
    joint: bool = False


def share(name: str, value: float, least: float = 0.0, most: float = 1.0) -> float:
    """Return the value; ConfigError for objective.`name` unless least < value <= most."""
    if not least < value <= most:
        raise ConfigError(
            f"objective.{name}={value}: expected a number above {least:g}, at most {most:g}"
        )
    return value
