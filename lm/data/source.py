"""Source: what a training step reads. Packed rows are one (`lm.data.batches.TrainBatches`)."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.batch import Batch
from lm.data.templates import Template

Carry = Mapping[str, np.ndarray]  # arrays that a source keeps from one step to a later one


@dataclasses.dataclass(frozen=True)
class SourceTools:
    """What a source makes batches with.

    model: the LanguageModel. params: training state -> the model's current parameters, with
    adapters merged. batch_size and length: of the batches. seed: of the run. rows: those of a batch
    that the devices of this process hold. beside: training state -> the auxiliary models at that
    moment, by name (`lm.tasks.models.Beside`).
    """

    model: Any
    tokenizer: Any
    template: Template | None
    params: Callable[[Any], dict]
    batch_size: int
    length: int
    seed: int
    rows: Sequence[int] = ()
    beside: Callable[[Any], Mapping[str, Any]] | None = None


class Source(abc.ABC):
    """Batches for the steps of a run.

    After `restore(position(), carry())` in another process, `next` returns the same batches. With
    several processes, each calls every method, and all must return the same; but a batch may be
    empty (segments 0) in rows that are not in `SourceTools.rows`.
    """

    @abc.abstractmethod
    def next(self, state: Any) -> Batch:
        """Batch of the next step, [batch_size, T].

        state: the training state (`lm.training.state.TrainState`) before the step. The step
        overwrites its arrays, so keep no reference to them. Arrays of the batch may be NumPy's.
        """

    @abc.abstractmethod
    def position(self) -> dict:
        """Position for a checkpoint, as JSON. `rows`, if it is there, counts the rows read."""

    def carry(self) -> dict[str, np.ndarray]:
        """Arrays for a checkpoint: what was made and is not used yet. Their shapes may change."""
        return {}

    @abc.abstractmethod
    def restore(self, position: dict, carry: Carry) -> None:
        """Continue from a position and its arrays."""
