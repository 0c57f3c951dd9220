"""Parts of a run: its task, the sources of a mixture, and further tasks, each with its config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lm import tasks
from lm.data import mixtures
from lm.models.config import ConfigError, nearest
from lm.training.several import MAIN, Several

# fields of a source of data.mixture, and of a further task: name -> types
SOURCE: dict[str, tuple[type, ...]] = {
    "files": (str,),
    "weight": (float, int),
    "limit": (int,),
    "max_bad_share": (float, int),
    "task": (ConfigDict,),
}
FURTHER: dict[str, tuple[type, ...]] = {
    "task": (ConfigDict,),
    "files": (str,),
    "batch_size": (int,),
    "coefficient": (float, int),
    "max_bad_share": (float, int),
}
WORDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    ConfigDict: "fields of the run's task, or tasks.defaults(NAME)",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A task with the config of a run on it alone. coefficient: of its loss."""

    config: ConfigDict
    task: Any
    coefficient: float = 1.0


@dataclasses.dataclass(frozen=True)
class Parts:
    """The run's own task; the sources of its mixture; and the tasks that it learns beside it."""

    main: Part
    sources: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    further: Mapping[str, Part] = dataclasses.field(default_factory=dict)

    @property
    def read(self) -> list[Part]:
        """The parts whose files are read for training."""
        return [*(list(self.sources.values()) or [self.main]), *self.further.values()]

    def check(self) -> None:
        """Let every task check its own config. Raises ConfigError, naming a source."""
        if not self.sources:
            self.main.task.check(self.main.config)
        others = {f"data.mixture.{name}": part for name, part in self.sources.items()}
        others |= {f"further_tasks.{name}": part for name, part in self.further.items()}
        for where, part in others.items():
            try:
                part.task.check(part.config)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error

    @property
    def batches(self) -> dict[str, Part]:
        """The parts that have a batch of their own in every update."""
        return {MAIN: self.main, **self.further}

    @property
    def by_row(self) -> bool:
        """Whether devices can compute the loss for their own rows alone; see `Task`."""
        return all(part.task.by_row and not part.task.joint for part in self.batches.values())

    def several(self) -> Any:
        """What gives the loss, if it has several terms: `Several`, or the task; else None."""
        task = self.main.task
        if not self.further:
            return task if len(task.terms) > 1 or task.coefficients else None
        every = {name: part.task for name, part in self.batches.items()}
        return Several(every, {name: part.coefficient for name, part in self.batches.items()})


def of(config: ConfigDict) -> Parts:
    """The parts of a run. Raises ConfigError, naming the field, for those that do not fit."""
    main = Part(config, tasks.of(config))
    _check_mixture(config)
    sources = {name: _source(config, part) for name, part in config.data.mixture.items()}
    for name, source in sources.items():
        _check_source(main.task, name, source.task)
    if config.data.mixture:
        mixtures.check_weights(config.data.mixture.to_dict(), config.data.temperature)
    for name, part in config.further_tasks.items():
        _check_fields(f"further_tasks.{name}", part, FURTHER, ("task", "files", "batch_size"))
    further = {name: _further(config, part) for name, part in config.further_tasks.items()}
    for name, part in further.items():
        _check_further(config, main.task, name, part)
    return Parts(main, sources, further)


def _source(config: ConfigDict, part: ConfigDict) -> Part:
    """A source's `task` changes fields of the run's task, or is a section of its own.

    Such as text beside instruct data against forgetting (PPO-ptx, Ouyang et al. 2022, section 3.5).
    The loss of the run's task is used for all sources.
    """
    own = ConfigDict(config.to_dict())
    task = part.get("task", ConfigDict())
    if task.get("name", config.task.name) != config.task.name:
        own.task = ConfigDict(task.to_dict())
        own.samples.prompts = ()
    else:
        own.task.update(task.to_dict())
    own.data.files = part.files
    own.data.max_bad_share = part.get("max_bad_share", config.data.max_bad_share)
    own.data.mixture, own.data.temperature = ConfigDict(), 1.0
    own.further_tasks = ConfigDict()
    return Part(own, tasks.of(own))


def _further(config: ConfigDict, part: ConfigDict) -> Part:
    own = ConfigDict(config.to_dict())
    own.further_tasks, own.data.mixture = ConfigDict(), ConfigDict()
    own.data.temperature, own.data.synthetic_rows, own.data.holdout_share = 1.0, 0, 0.0
    own.task, own.samples.prompts = ConfigDict(part.task.to_dict()), ()
    own.data.files, own.batch_size = part.files, part.batch_size
    own.data.max_bad_share = part.get("max_bad_share", 0.0)
    return Part(own, tasks.of(own), part.get("coefficient", 1.0))


def _check_mixture(config: ConfigDict) -> None:
    data = config.data
    if not data.mixture:
        if data.temperature != 1.0:
            raise ConfigError(
                f"data.temperature={data.temperature} is of data.mixture, which names no source; "
                "leave it as it is"
            )
        return
    if data.files or data.synthetic_rows:
        raise ConfigError(
            "set data.files, data.mixture or data.synthetic_rows, and only one of them"
        )
    for name, part in data.mixture.items():
        _check_fields(f"data.mixture.{name}", part, SOURCE, ("files",))
    if tasks.HELD_OUT in config.eval.data.values():
        raise ConfigError(
            f"eval.data asks for {tasks.HELD_OUT!r}, the tasks held out of data.files; "
            "with data.mixture, name files"
        )


def _check_fields(where: str, part: Any, known: Mapping, needed: tuple[str, ...]) -> None:
    if not isinstance(part, ConfigDict):
        raise ConfigError(f"{where}={part!r}: expected fields, some of {', '.join(known)}")
    for field, value in part.items():
        if field not in known:
            of_task = any(field in vars(kind()) for kind in tasks.TASKS.values())
            hint = f'; give it as "task": {{"{field}": ...}}' if of_task else ""
            close = "" if of_task else nearest(field, known)
            raise ConfigError(f"{where}.{field} is unknown{close}; one of {', '.join(known)}{hint}")
        if not isinstance(value, known[field]) or isinstance(value, bool):
            raise ConfigError(f"{where}.{field}={value!r}: expected {WORDS[known[field][0]]}")
    for field in needed:
        if not part.get(field):
            raise ConfigError(f"{where}.{field} is not set")


def _check_source(main, name: str, own) -> None:
    """Refuse a source whose rows the loss and the template of the run's task do not fit."""
    if own.name == main.name or _one_loss(own, main):
        return
    alike = [other for other, kind in tasks.TASKS.items() if _one_loss(kind(), main)]
    raise ConfigError(
        f"data.mixture.{name}.task.name={own.name!r} does not go with task.name={main.name!r}; one "
        f"of {', '.join(dict.fromkeys([main.name, *alike]))}"
    )


def _one_loss(own, main) -> bool:
    """Whether rows of the task `own` can be in one batch with those of `main`."""
    same = getattr(own.loss, "__func__", 0) is getattr(main.loss, "__func__", 1)
    return same and not own.renders


def _check_further(config: ConfigDict, main, name: str, part: Part) -> None:
    where, own = f"further_tasks.{name}", part.task
    if name == MAIN:
        raise ConfigError(f"{where}: this is the name of the run's own task; rename it")
    if not part.coefficient > 0:
        raise ConfigError(f"{where}.coefficient={part.coefficient}: expected more than 0")
    if own.makes_head or (own.renders and not main.renders):
        raise ConfigError(
            f"{where}.task.name={own.name!r} does not go with task.name={main.name!r}: it "
            "needs a head or a template that the run's own task does not give"
        )
    if (own.joint or main.joint) and config.accumulate > 1:
        raise ConfigError(
            f"accumulate={config.accumulate}: a task that compares the rows of a batch cannot "
            "be split beside another; set it to 1"
        )
    if config.adaptation.kl.strength:
        raise ConfigError(
            f"adaptation.kl.strength={config.adaptation.kl.strength}: the divergence is taken on "
            "the batch of one task; leave it at 0 with further_tasks"
        )
