"""Evaluators by their names in `config.evals`: {name: {"type": ..., "every": ..., FIELD: ...}}."""

import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Any

from lm import plugins
from lm.data.read.sources import DataError
from lm.evaluation.evaluators.answers import Answers
from lm.evaluation.evaluators.bits import Bits
from lm.evaluation.evaluators.completions import Completions
from lm.evaluation.evaluators.evaluator import Evaluator, Prepared, Result, Tools
from lm.evaluation.evaluators.facts import Facts
from lm.evaluation.evaluators.labels import Labels
from lm.evaluation.evaluators.pairs import Pairs
from lm.evaluation.evaluators.rewards import Rewards
from lm.evaluation.evaluators.rows import Rows
from lm.evaluation.evaluators.samples import Samples
from lm.models.config import ConfigError, nearest

EVALUATORS: dict[str, type[Evaluator]] = {
    "rows": Rows,
    "labels": Labels,
    "answers": Answers,
    "samples": Samples,
    "facts": Facts,
    "pairs": Pairs,
    "bits": Bits,
    "completions": Completions,
    "rewards": Rewards,
}
WORDS = ("type", "every")  # fields of a section that are not the evaluator's own

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "Result",
    "Scheduled",
    "Tools",
    "check",
    "measured",
    "of",
    "prepared",
]


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """An evaluator with its name, and the steps between its runs; 0 = only after the last.

    where: the section of the config that describes it, for messages.
    """

    name: str
    every: int
    evaluator: Evaluator
    where: str

    def due(self, step: int, last: int) -> bool:
        """Whether it runs after `step` of `last`."""
        return step == last or bool(self.every and step % self.every == 0)


def of(sections: Mapping[str, Any]) -> list[Scheduled]:
    """The evaluators of `config.evals`. Raises ConfigError, naming the field."""
    found = []
    for name, section in sections.items():
        where = f"evals.{name}"
        fields = dict(section.items()) if hasattr(section, "items") else {}
        if "type" not in fields:
            raise ConfigError(
                f"{where}={fields or section}: expected fields: type ({', '.join(EVALUATORS)}, or "
                "module:Class), every, and those of the evaluator"
            )
        kind = plugins.find(f"{where}.type", fields["type"], EVALUATORS, Evaluator)
        known = [field.name for field in dataclasses.fields(kind)]
        for field in fields:
            if field not in (*known, *WORDS):
                raise ConfigError(
                    f"{where}.{field}: the evaluator {fields['type']!r} has no such field"
                    f"{nearest(field, known)}; its fields are {', '.join(known) or 'none'}"
                )
        every = fields.get("every", 0)
        if not isinstance(every, int) or every < 0:
            raise ConfigError(f"{where}.every={every!r}: expected a number of steps, 0 or more")
        own = {field: value for field, value in fields.items() if field not in WORDS}
        found.append(Scheduled(name, every, plugins.made(kind, own), where))
    return found


def check(one: Scheduled, config) -> None:
    """Raise ConfigError, naming the field, when a field of the evaluator is invalid."""
    try:
        one.evaluator.check(config)
    except ConfigError as error:
        raise ConfigError(f"{one.where}.{error}") from error
    except Exception as error:
        raise _raised(one, "check", error) from error


def prepared(one: Scheduled, tools: Tools) -> Prepared:
    """Prepare an evaluator. Raises ConfigError and DataError."""
    try:
        return one.evaluator.prepare(tools)
    except ConfigError as error:
        raise ConfigError(f"{one.where}: {error}") from error
    except (DataError, OSError):
        raise
    except Exception as error:
        raise _raised(one, "prepare", error) from error


def measured(one: Scheduled, measure: Prepared, params: dict, step: int) -> Result:
    """Result of a prepared evaluator. ConfigError when it raises, or returns another kind."""
    try:
        found = measure(params, step)
    except Exception as error:
        raise _raised(one, "the evaluation", error) from error
    if not isinstance(found, Result):
        raise ConfigError(
            f"{one.where} ({_file(one)}): the evaluation returned {type(found).__name__}, "
            "expected a Result"
        )
    return found


def _raised(one: Scheduled, what: str, error: Exception) -> ConfigError:
    reason = (str(error).splitlines() or [""])[0]
    return ConfigError(
        f"{one.where} ({_file(one)}): {what} raised {type(error).__name__}: {reason}"
    )


def _file(one: Scheduled) -> str:
    return os.path.relpath(inspect.getfile(type(one.evaluator)))
