"""Check what a user's task returns, and name its file when it raises."""

import inspect
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.data.batches import stacked
from lm.data.packed import Packed
from lm.data.read.sources import DataError
from lm.data.source import Source
from lm.losses import Loss, Term
from lm.models.config import ConfigError
from lm.tasks.prompts import Prompts
from lm.tasks.task import Start, Task, Transform

GUARDED = (
    "check",
    "prepare",
    "prepare_tokenizer",
    "longest",
    "fields",
    "aux",
    "rows",
    "transform",
    "source",
    "weights",
    "loss",
    "shown",
    "compared",
)
RESULTS: dict[str, Any] = {
    "prepare": Start,
    "longest": int,
    "fields": dict,
    "aux": dict,
    "rows": Packed,
    "transform": (Transform, type(None)),
    "source": (Source, type(None)),
    "weights": dict,
    "loss": Loss,
    "compared": Packed,
}


class Checked:
    """A task whose methods' exceptions and results are reported with the task's file.

    ConfigError and DataError are raised unchanged; any other exception becomes a ConfigError.
    """

    def __init__(self, task: Task):
        self._task = task

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._task, name)
        return self._guarded(name, found) if name in GUARDED else found

    def likelihood(self) -> "Checked":
        return Checked(self._task.likelihood())

    @property
    def where(self) -> str:
        """Name and file of the task."""
        file = os.path.relpath(inspect.getfile(type(self._task)))
        return f"task {self._task.name!r} ({file})"

    def _guarded(self, name: str, method):
        checked: list[bool] = []  # rows are checked once

        def call(*args, **options):
            try:
                found = method(*args, **options)
            except (ConfigError, DataError):
                raise
            except Exception as error:
                reason = (str(error).splitlines() or [""])[0]
                raise ConfigError(
                    f"{self.where}: {name} raised {type(error).__name__}: {reason}"
                ) from error
            expected = RESULTS.get(name)
            if expected is not None and not isinstance(found, expected):
                kinds = expected if isinstance(expected, tuple) else (expected,)
                raise ConfigError(
                    f"{self.where}: {name} returned {type(found).__name__}, expected "
                    f"{' or '.join(kind.__name__ for kind in kinds)}"
                )
            if name == "loss":
                self._check_loss(found)
            if name == "rows":
                self._check_rows(found)
            if name == "transform" and found is not None:
                return Transform(self._guarded("transform.fields", found.fields), found.lengths)
            if name == "transform.fields" and not checked:
                self._check_fields("transform", found)
                checked.append(True)
            return found

        return call

    def _check_loss(self, loss: Loss) -> None:
        if not loss.terms:
            raise ConfigError(f"{self.where}: loss returned no term, expected at least one")
        for name, term in loss.terms.items():
            if not isinstance(term, Term):
                raise ConfigError(
                    f"{self.where}: the term {name!r} of the loss is {type(term).__name__}, "
                    "expected a Term(sum, weight)"
                )
        found: dict[str, Any] = {f"term {name!r}": term for name, term in loss.terms.items()}
        found |= {f"metric {name!r}": value for name, value in loss.metrics.items()}
        for name, term in found.items():
            parts = (
                {f"sum of the {name}": term.sum, f"weight of the {name}": term.weight}
                if isinstance(term, Term)
                else {name: term}
            )
            for what, value in parts.items():
                shape, dtype = jnp.shape(value), jnp.result_type(value)
                if shape != () or dtype != jnp.float32:
                    raise ConfigError(
                        f"{self.where}: the {what} of the loss is {dtype}{list(shape)}, expected "
                        "a float32 scalar"
                    )

    def _check_rows(self, packed: Packed) -> None:
        shape = np.shape(packed.tokens)
        for name in ("tokens", "targets", "segments"):
            found = np.shape(getattr(packed, name))
            if len(found) != 2 or found != shape:
                raise ConfigError(
                    f"{self.where}: rows returned {name} of shape {list(found)}, expected [N, T] "
                    f"as tokens {list(shape)}"
                )
        for name, values in packed.extra.items():
            if len(values) != shape[0]:
                raise ConfigError(
                    f"{self.where}: rows returned {name!r} for {len(values)} rows, expected "
                    f"{shape[0]}, one for each row of tokens"
                )
        if not isinstance(packed, Prompts):  # which are no rows of a batch
            self._check_fields("rows", {name: values[0] for name, values in packed.extra.items()})

    def _check_fields(self, method: str, row) -> None:
        """Raise ConfigError, naming the task, for undeclared fields and lossy dtypes."""
        if not isinstance(row, dict):
            raise ConfigError(
                f"{self.where}: {method} returned {type(row).__name__} for a row, expected a dict "
                "of fields"
            )
        try:
            stacked([row])
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {method}: {error}") from error


def plain(task: Any) -> Any:
    """The task itself, for a test of its class."""
    return task._task if isinstance(task, Checked) else task
