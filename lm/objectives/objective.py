"""Objective: how rows of text become a task, and the loss of that task. Transform: the first half, which runs on the host in numpy."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lm.data.packing import Packed
from lm.models.config import ConfigError
from lm.objectives.loss import Loss

Row = Mapping[
    str, np.ndarray
]  # tokens, targets, segments, [T] each: a row of lm.data.packing.Packed
Fields = dict[
    str, np.ndarray
]  # of lm.Batch, a row each; positions are those within each document and need not be among them


def as_packed(packed: Packed) -> tuple[int, int]:
    """Rows as long as they were packed, and none for an encoder."""
    return packed.length, 0


@dataclasses.dataclass(frozen=True)
class Transform:
    """What an objective does to each row.

    fields: (row, random generator of that row, lengths) -> Fields. It works document by document, and a document's tokens keep its
    segment number on both sides of an encoder-decoder. lengths: packed rows -> (T, S), the fixed lengths of the rows it makes of
    them and of their encoder's, S = 0 without one.
    """

    fields: Callable[[Row, np.random.Generator, tuple[int, int]], Fields]
    lengths: Callable[[Packed], tuple[int, int]] = as_packed


@dataclasses.dataclass(frozen=True)
class Objective:
    """loss: (model, params, batch, rng, chunk=0) -> Loss.   heads: the model heads it is defined for.

    transform: (tokenizer or None, ModelConfig, **options of the config's section objective.NAME) -> Transform, which raises ConfigError
    when they do not go together; None = rows stay as they were packed. whole: the targets of a packed row are all of each document (see
    `packing.encode`), as for what is not predicted from left to right. special: arguments of `tokenizers.bytes_only` for the special
    tokens it needs. longest: (T, **options) -> the most tokens that a document of a packed row of T has on either side. options: those
    of its section that the loss takes. joint: the rows of a batch are compared with one another, so that micro-batches are not summed:
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
    """The value; ConfigError, calling it objective.`name`, unless it lies above `least` and not above `most`."""
    if not least < value <= most:
        raise ConfigError(
            f"objective.{name}={value}: expected a number above {least:g}, at most {most:g}"
        )
    return value
