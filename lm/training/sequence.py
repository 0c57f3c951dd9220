"""Facts that determine the order of a run's rows, saved and compared when a run is resumed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from lm import tasks
from lm.data.mixtures import Mixture
from lm.data.packed import Packed, digest
from lm.models.config import ConfigError, nearest
from lm.tasks.task import Task
from lm.tasks.text import TextTask, TokenTask
from lm.training.checkpoints import CheckpointError, Restored
from lm.weights.runs import run_folder
from lm.weights.runs.old_runs import upgrade_facts
from lm.weights.runs.paths import Folder

FURTHER = "further_tasks."  # fields of further tasks
FILES = "data.files"  # name of the fact about the content of the rows
OMITTED = (  # fields that never change a row
    "data.cache",
    "data.max_bad_share",
    "task.max_long",
    *(f"task.{field.name}" for field in dataclasses.fields(TokenTask)),
    "task.temperature",
    "task.soft",
    "task.top_k",
    "task.discriminator_weight",
    "task.symmetric",
    "task.pooling",
)
# fields that change the sequence even if the rows are the same, as do the options of transforms
ORDER = ("seed", "task.name", "data.temperature", "data.mixture.", FURTHER)

Facts = dict[str, Any]


def facts(
    config: ml_collections.ConfigDict,
    packed: Packed | Mixture,
    others: Mapping[str, Packed] | None = None,
) -> Facts:
    """Name -> JSON value of config fields that affect the sequence, and digests of the rows."""
    mixed = isinstance(packed, Mixture)
    contents = (
        {f"data.mixture.{part.name}.files": part.packed for part in packed.parts}
        if mixed
        else {FILES: packed}
    )
    contents |= {f"{FURTHER}{name}.files": rows for name, rows in (others or {}).items()}
    return fields(config.to_dict()) | {name: digest(rows) for name, rows in contents.items()}


def fields(config: dict) -> Facts:
    """Facts from the config alone, without digests of rows."""
    sections = {
        name: config[name]
        for name in ("seed", "length", "data", "task", "further_tasks")
        if name in config
    }
    flat = dict(_flat(sections))
    return {
        name: value
        for name, value in flat.items()
        if _of_run(name) not in OMITTED and not _is_contents(name)
    }


def _of_run(name: str) -> str:
    """Name of a field of a source's task in the run's: data.mixture.NAME.task.FIELD, task.FIELD."""
    source, found, field = name.partition(".task.")
    return f"task.{field}" if found and source.startswith("data.mixture.") else name


def _of_transforms() -> set[str]:
    """Fields of tasks that transform rows whenever they are read, without those that read files."""
    return {
        f"task.{field}"
        for kind in tasks.TASKS.values()
        if kind.transform is not Task.transform
        for field in vars(kind()).keys() - vars(TextTask()).keys()
    }


def resumed(
    config: ml_collections.ConfigDict, workdir: Folder, now: Facts, restored: Restored
) -> list[str]:
    """Changes in what a resumed run reads, as from `check`, with the same errors."""
    saved = restored.data.get("sequence")
    if saved is not None:
        saved = upgrade_facts(saved)
    if (
        saved is None and (before := run_folder.read_config(workdir)) is not None
    ):  # saved by an earlier version, which counts batches
        if "next_index" in restored.data and before.get("batch_size") != config.batch_size:
            raise CheckpointError(
                f"{workdir}: step {restored.step} was saved by an earlier version, which counts "
                "batches: it continues with "
                f"batch_size={before.get('batch_size')} alone, and batch_size is "
                f"{config.batch_size}"
            )
        saved = fields(before)
    return check(saved or now, now, config.resume.allow, restored.step)


def check(saved: Facts, now: Facts, allow: str, step: int) -> list[str]:
    """Changes since `step` was saved that `allow` permits, as lines "name: old -> new".

    allow: comma-separated names. A changed field that did not change the rows does not count, nor
    does a field that only one of two versions of this program has.
    Raises CheckpointError for a change that is not allowed, and ConfigError for an unknown name in
    `allow`.
    """
    allowed = {name.strip() for name in allow.split(",")} - {""}
    for name in allowed:
        if name not in saved | now:
            raise ConfigError(
                f"resume.allow: {name!r} is unknown{nearest(name, saved | now)}; one of "
                f"{', '.join(sorted(saved | now))}"
            )
    known = any(map(_is_contents, saved))  # an earlier version saved no digests of rows
    both = [
        name
        for name in saved | now
        if name.startswith(("data.mixture.", FURTHER)) or name in saved.keys() & now.keys()
    ]
    names = [name for name in both if saved.get(name) != now.get(name) and not _is_contents(name)]
    contents = [
        name
        for name in saved | now
        if known and _is_contents(name) and saved.get(name) != now.get(name)
    ]
    transforms = _of_transforms()
    settings = [
        name
        for name in names
        if contents or not known or name.startswith(ORDER) or name in transforms
    ]
    changed = settings or contents  # a changed setting explains changed rows of the same files
    lines = {
        name: f"{name}: {_shown(saved.get(name))} -> {_shown(now.get(name))}" for name in changed
    }
    if refused := [name for name in changed if name not in allowed]:
        raise CheckpointError(
            f"the run would read other rows than the one that saved step {step}, and skip or "
            "repeat some:\n  "
            + "\n  ".join(lines[name] for name in refused)
            + "\nuse the old values, another --workdir, or continue with the new ones: "
            f"--config.resume.allow={','.join(changed)}"
        )
    return list(lines.values())


def _is_contents(name: str) -> bool:
    return name == FILES or (
        name.startswith(("data.mixture.", FURTHER)) and name.endswith(".files")
    )


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str) and value.startswith("rows ") else repr(value)


def _flat(tree: dict, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, list(value) if isinstance(value, tuple) else value))
    return found
