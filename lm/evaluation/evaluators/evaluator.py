"""Evaluator: measures a model between the steps of a run, in lm.evaluate, and in studies."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from lm.data.packed import Packed
from lm.data.records.reading import Read
from lm.data.templates import Template
from lm.distributed.sharding import Rules
from lm.evaluation import labelled, perplexity
from lm.losses import Loss
from lm.models import LanguageModel
from lm.tasks.models import Models


@dataclasses.dataclass(frozen=True)
class Tools:
    """What an evaluator measures with: the parts of a run.

    task, transform: `lm.tasks.Task` of the run, and what it does to rows. rows: files -> packed
    rows of the task. records: files -> instruct records; only of a task with a template.
    prompt_ids: text -> token ids, framed as in training. say: print a line.
    beside: () -> auxiliary models that go with the params that are measured; None without any.
    """

    model: LanguageModel
    tokenizer: Any
    template: Template | None
    task: Any
    transform: Any
    mesh: Mesh
    activations: Rules
    batch_size: int
    accumulate: int
    rows: Callable[[str], Packed]
    records: Callable[[str], Read]
    prompt_ids: Callable[[str], list[int]]
    say: Callable[[str], None]
    beside: Callable[[], Models] | None = None

    @functools.cached_property
    def measure(self) -> Any:
        """Function (params, packed, max_rows) -> Perplexity, or means of the task's loss by name.

        It compiles once for all evaluators of a run.
        """
        options: dict = dict(activations=self.activations, transform=self.transform)
        if self.task.evaluator == "perplexity":
            return perplexity.make_evaluator(self.model, self.mesh, self.batch_size, **options)
        loss = self.task.loss
        if self.task.joint:
            loss = functools.partial(loss, parts=self.accumulate)
        if self.beside is None:
            return labelled.make_evaluator(self.model, self.mesh, self.batch_size, loss, **options)

        others = self.beside

        def with_models(model, params, batch) -> Loss:
            return loss(model, params["main"], batch, models=params["beside"])

        measure = labelled.make_evaluator(
            self.model, self.mesh, self.batch_size, with_models, **options
        )
        return lambda params, packed, max_rows=0: measure(
            {"main": params, "beside": dict(others())}, packed, max_rows
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """Values by name, such as "loss"; what is said of them; and texts for samples.md.

    said: a few words, without the evaluator's name. samples: (prompt, text) pairs.
    """

    values: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    said: str = ""
    samples: list[tuple[str, str]] = dataclasses.field(default_factory=list)


# (params, step) -> Result
Prepared = Callable[[dict, int], Result]


class Evaluator(abc.ABC):
    """Base class of evaluators: frozen dataclasses whose fields are a section of `config.evals`."""

    def check(self, config) -> None:  # noqa: B027 may have nothing to check
        """Raise ConfigError, which begins with the field, before anything is read."""

    @abc.abstractmethod
    def prepare(self, tools: Tools) -> Prepared:
        """Read what is needed, and return the function that measures params; before step 0."""
