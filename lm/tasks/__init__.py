"""Tasks: what a model can be taught, one file each.

`config.task` is the section of one task: its name and its fields, as `defaults` makes it. A name is
one of TASKS, or module:Class for a task in a file of a user.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lm import plugins
from lm.batch import FIELDS
from lm.models.config import ConfigError, nearest
from lm.tasks.checked import Checked
from lm.tasks.classification import Classification
from lm.tasks.contrastive import Contrastive
from lm.tasks.denoising import Denoising
from lm.tasks.distillation import Distillation
from lm.tasks.grpo import GRPO
from lm.tasks.instruct import Instruct
from lm.tasks.kto import KTO
from lm.tasks.masked import Masked
from lm.tasks.next_token import NextToken
from lm.tasks.ppo import PPO
from lm.tasks.preference import DPO, ORPO, SimPO
from lm.tasks.prefix_lm import PrefixLM
from lm.tasks.question_answering import QuestionAnswering
from lm.tasks.replaced_token_detection import ReplacedTokenDetection
from lm.tasks.reward import Reward
from lm.tasks.span_corruption import SpanCorruption
from lm.tasks.task import HELD_OUT, HOLDOUT, Kept, Start, Task, Tools, Transform
from lm.tasks.token_classification import TokenClassification
from lm.tasks.ul2 import UL2

TASKS: dict[str, type[Task]] = {
    "next_token": NextToken,
    "instruct": Instruct,
    "prefix_lm": PrefixLM,
    "masked": Masked,
    "span_corruption": SpanCorruption,
    "ul2": UL2,
    "denoising": Denoising,
    "classification": Classification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "contrastive": Contrastive,
    "distillation": Distillation,
    "replaced_token_detection": ReplacedTokenDetection,
    "dpo": DPO,
    "simpo": SimPO,
    "orpo": ORPO,
    "kto": KTO,
    "reward": Reward,
    "grpo": GRPO,
    "ppo": PPO,
}

__all__ = [
    "HELD_OUT",
    "HOLDOUT",
    "TASKS",
    "Kept",
    "Start",
    "Task",
    "Tools",
    "Transform",
    "class_of",
    "defaults",
    "name_of",
    "of",
    "section_of",
]


def defaults(name: str, **changes) -> ConfigDict:
    """Section `config.task` of a task with its defaults, locked. changes: fields to set.

    Raises ConfigError for an unknown task or field.
    """
    section = section_of(class_of(name)())
    section.name = name
    for field, value in changes.items():
        if field not in section:
            raise ConfigError(_unknown(field, name, section.keys()))
        section[field] = value
    return section.lock()


def section_of(task: Task) -> ConfigDict:
    """Section of a task with the values of its fields."""
    fields: Any = task
    return ConfigDict({"name": task.name, **dataclasses.asdict(fields)})


def class_of(name: str) -> type[Task]:
    """Class of a task by its name. Raises ConfigError, naming the file of a user's task."""
    found = plugins.find("task.name", name, TASKS, Task)
    for field, declared in found.new_fields.items():
        if FIELDS.setdefault(field, declared) != declared:
            raise ConfigError(
                f"task.name={name!r} declares the batch field {field!r} as {declared}, and it is "
                f"{FIELDS[field]} already: choose another name"
            )
    return found


def name_of(task: type[Task]) -> str:
    """Name of a task's class in a config."""
    return plugins.name_of(task, TASKS)


def of(config: ConfigDict | Mapping) -> Any:
    """Task of a config: an instance with the fields of `config.task`.

    Raises ConfigError for an unknown task, and for fields that it does not have or that are
    missing.
    """
    section = config["task"]
    fields = {name: value for name, value in section.items() if name != "name"}
    kind: Any = class_of(section["name"])
    known = [field.name for field in dataclasses.fields(kind)]
    for name in fields:
        if name not in known:
            raise ConfigError(_unknown(name, section["name"], known))
    if missing := [name for name in known if name not in fields]:
        raise ConfigError(
            f"task.{missing[0]} is missing in the section of task {section['name']!r}: make it "
            f"with c.task = tasks.defaults({section['name']!r}, ...)"
        )
    return made(kind, fields)


def made(kind: type[Task], fields: Mapping[str, Any]) -> Any:
    """Instance of a task with these fields. A user's task is checked whenever it is called."""
    task = plugins.made(kind, fields)
    return task if kind in TASKS.values() else Checked(task)


def _unknown(field: str, name: str, known) -> str:
    others = [other for other, kind in TASKS.items() if field in vars(kind())]
    of = f"; it is a field of the tasks {', '.join(others)}" if others else ""
    return (
        f"task.{field}: the task {name!r} has no such field{nearest(field, known)}{of}. Its fields "
        f"are {', '.join(field for field in known if field != 'name') or 'none'}; the task is "
        "chosen in the config file, with c.task = tasks.defaults(NAME)"
    )
