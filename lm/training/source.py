"""Sources of a run: packed rows that are read ahead, or what a task makes from the state."""

import inspect
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from lm.batch import Batch
from lm.data.batches import Lengths, placed
from lm.data.read.sources import DataError
from lm.data.source import Carry, Source, SourceTools
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.task import Task


class TaskSource(Source):
    """The source of a task, checked whenever it is called, with its batches on the devices.

    Errors name the source's file. abstract: shapes, dtypes and shardings of a batch, as the task
    declares them.
    """

    def __init__(self, source: Source, abstract: Batch, lengths: Lengths, model: ModelConfig):
        self.lengths = lengths
        self._source, self._abstract, self._model = source, abstract, model

    @property
    def where(self) -> str:
        kind = type(self._source)
        return f"source {kind.__qualname__} ({os.path.relpath(inspect.getfile(kind))})"

    def next(self, state: Any = None) -> Batch:
        batch = self._call("next", self._source.next, state, kind=Batch)
        return self._call("next", placed, batch, self._abstract, self._model)

    def position(self) -> dict:
        found = self._call("position", self._source.position, kind=dict)
        try:
            same = json.loads(json.dumps(found, allow_nan=False)) == found
        except (TypeError, ValueError):
            same = False
        if not same:
            raise ConfigError(
                f"{self.where}: position returned {found!r}, which JSON does not hold as it is: "
                "use texts, whole numbers, lists and dicts with texts as keys"
            )
        return found

    def carry(self) -> dict[str, np.ndarray]:
        found = self._call("carry", self._source.carry, kind=dict)
        arrays = {name: np.asarray(values) for name, values in found.items()}
        for name, values in arrays.items():
            if not isinstance(name, str) or values.dtype.kind not in "biuf":
                raise ConfigError(
                    f"{self.where}: carry returned {name!r} of {values.dtype}, expected names "
                    "with arrays of numbers"
                )
        return arrays

    def restore(self, position: dict, carry: Carry | None = None) -> None:
        self._call("restore", self._source.restore, position, dict(carry or {}))

    def _call(self, name: str, method: Callable, *args, kind: type | None = None) -> Any:
        try:
            found = method(*args)
        except (ConfigError, DataError) as error:
            raise type(error)(f"{self.where}: {name}: {error}") from error
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(
                f"{self.where}: {name} raised {type(error).__name__}: {reason}"
            ) from error
        if kind is not None and not isinstance(found, kind):
            raise ConfigError(
                f"{self.where}: {name} returned {type(found).__name__}, expected {kind.__name__}"
            )
        return found


def of_task(
    task: Task, rows: Any, tools: SourceTools, abstract: Batch, lengths: Lengths
) -> TaskSource | None:
    """The source that a task makes of its packed rows; None: they are read ahead."""
    found = task.source(rows, tools)
    return None if found is None else TaskSource(found, abstract, lengths, tools.model.config)
