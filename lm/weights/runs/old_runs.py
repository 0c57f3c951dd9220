"""Read the configs and facts of runs that an earlier version made.

Format 1 had a section `objective` for all objectives, and their fields of records in `data`. Format
2 has the section of one task, `task` (lm/tasks).
"""

import copy
import dataclasses
from typing import Any

from lm import tasks
from lm.tasks.text import TokenTask

FORMAT = 2  # of run folders, in config.json
MOVED = (  # fields of records, which were in `data`
    "field",
    "separator",
    "stride",
    "label_field",
    "pair_field",
    "negatives_field",
    "max_long",
    "format",
    "template",
    "turns",
    "shots",
    "cap",
    "hold_out",
    "too_long",
    "target_length",
    "tk_instruct",
)
LOSS = tuple(field.name for field in dataclasses.fields(TokenTask))  # options of the loss alone


def upgrade(config: dict) -> dict:
    """Config of a run in the current format; unchanged if it has no known task.

    Fields that the task has got since then have their defaults.
    """
    objective = config.get("objective")
    if not isinstance(objective, dict) or objective.get("name") not in tasks.TASKS:
        task = config.get("task")
        if not isinstance(task, dict) or task.get("name") not in tasks.TASKS:
            return config
        usual = _usual(task["name"])
        return config if usual.keys() <= task.keys() else config | {"task": usual | task}
    config = copy.deepcopy(config)
    objective, data = config.pop("objective"), config.get("data") or {}
    name = objective["name"]
    config["task"] = _section(name, objective, data)
    for source, part in (data.get("mixture") or {}).items():
        own = part.pop("objective", name)
        fields = {field: part.pop(field) for field in list(part) if field in MOVED}
        if own != name and own in tasks.TASKS:
            fields = _section(own, objective, fields)
        data["mixture"][source] = part | ({"task": fields} if fields else {})
    config["data"] = {field: value for field, value in data.items() if field not in MOVED}
    return config


def upgrade_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts that determine the order of rows (lm/training/sequence.py), with current names."""
    if "objective.name" not in facts:
        return facts
    task, found = facts["objective.name"], {}
    for name, value in facts.items():
        if (name, value) == ("data.label_field", ""):
            continue  # "" was the default of the task
        renamed = _renamed(name, task)
        if renamed.endswith(".task.name"):  # of a source
            if value == task:
                continue
            found = _of_source(renamed.removesuffix("name"), value) | found
        found[renamed] = value
    return found


def _of_source(prefix: str, name: str) -> dict[str, Any]:
    """Facts of a source with its own task, whose options were not saved: the defaults."""
    section = _section(name, {}, {}) if name in tasks.TASKS else {}
    return {prefix + field: value for field, value in section.items() if field not in LOSS}


def _renamed(name: str, task: str) -> str:
    first, _, rest = name.partition(".")
    if first == "objective":
        return f"task.{rest.removeprefix(f'{task}.')}"
    if first == "data" and rest.partition(".")[0] in MOVED:
        return f"task.{rest}"
    if rest.startswith("mixture."):
        _, source, field = rest.split(".", 2)
        if field == "objective":
            return f"data.mixture.{source}.task.name"
        if field in MOVED:
            return f"data.mixture.{source}.task.{field}"
    return name


def _usual(name: str) -> dict:
    """Section of a task with its defaults."""
    return tasks.section_of(tasks.TASKS[name]()).to_dict()


def _section(name: str, objective: dict, data: dict) -> dict:
    """Section of a task, from the sections of format 1."""
    found = _usual(name)
    moved = {field: value for field, value in data.items() if field in MOVED}
    for field in found:
        for place in (objective.get(name) or {}, objective, moved):
            if field != "name" and field in place and (field, place[field]) != ("label_field", ""):
                found[field] = place[field]
                break
    return found
