"""The loss and the batches of several tasks that a run learns side by side.

The loss is the sum of the tasks' losses times their coefficients. Each term is divided by its own
weight in the whole batch of its task (PPO-ptx is one case: Ouyang et al. 2022, section 3.5).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch
from lm.data.source import Carry, Source
from lm.losses import Loss, Term

MAIN = "main"  # name of the run's own task among several


class Several:
    """The loss of several tasks on a batch of each: {name: Batch}."""

    def __init__(self, every: Mapping[str, Any], coefficients: Mapping[str, float]):
        self._tasks = dict(every)
        self.coefficients = {
            f"{name}/{term}": coefficients.get(name, 1.0) * task.coefficients.get(term, 1.0)
            for name, task in every.items()
            for term in task.terms
        }

    def weights(self, batches: Mapping[str, Batch]) -> dict[str, jax.Array]:
        """Weight of every term in the whole batch of its task."""
        return {
            f"{name}/{term}": weight
            for name, task in self._tasks.items()
            for term, weight in task.weights(batches[name]).items()
        }

    def loss(
        self, model, params: dict, batches: Mapping[str, Batch], rng=None, **of_main: Any
    ) -> Loss:
        """Terms and metrics of all tasks, named TASK/TERM; dropout is drawn for each.

        of_main: for the run's own task, such as its auxiliary models.
        """
        terms: dict[str, Term] = {}
        metrics: dict[str, jax.Array | Term] = {}
        for number, (name, task) in enumerate(self._tasks.items()):
            own = None if rng is None else jax.random.fold_in(rng, number)
            options = of_main if name == MAIN else {}
            found = task.loss(model, params, batches[name], own, **options)
            terms |= {f"{name}/{term}": value for term, value in found.terms.items()}
            metrics |= {
                f"{name}/{metric}": value
                if isinstance(value, Term)
                else Term(value, jnp.asarray(found.first.weight))
                for metric, value in found.metrics.items()
            }
        return Loss(terms, metrics)


class Together(Source):
    """Batches of several tasks, side by side: {name: Batch}. `lengths` are those of the first."""

    def __init__(self, sources: Mapping[str, Any]):
        self.sources = dict(sources)
        self.lengths = self.sources[MAIN].lengths

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        return self

    def __next__(self) -> dict[str, Batch]:
        return self.next()

    def next(self, state: Any = None) -> Any:
        return {name: source.next(state) for name, source in self.sources.items()}

    def position(self) -> dict:
        """That of the run's own task, with those of the further ones."""
        further = {n: source.position() for n, source in self.sources.items() if n != MAIN}
        return self.sources[MAIN].position() | {"further": further}

    def carry(self) -> dict[str, np.ndarray]:
        return {
            f"{name}/{array}": values
            for name, source in self.sources.items()
            for array, values in source.carry().items()
        }

    def restore(self, position: dict, carry: Carry | None = None) -> None:
        """Resume from a position. A task that was not there begins at its first row."""
        for name, source in self.sources.items():
            own = position if name == MAIN else position.get("further", {}).get(name)
            if own is not None:
                prefix = f"{name}/"
                arrays = {n: x for n, x in (carry or {}).items() if n.startswith(prefix)}
                source.restore(own, {n.removeprefix(prefix): x for n, x in arrays.items()})
