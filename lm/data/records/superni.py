"""Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705): task files, splits and checks."""

import collections
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from lm.data.read.sources import DataError
from lm.data.records.examples import Demonstration, Record

FEWEST, MOST = 26, 6500  # bounds on a task's instances in the checks of its repository
FEW_LABELS, ENTROPY = (
    15,
    0.8,
)  # a task with fewer labels than this needs a normalised entropy above this
READ = ("Definition", "Categories", "Positive Examples", "Negative Examples", "Instances")
NOTES = (  # fields of metadata, not used
    "Contributors",
    "Source",
    "URL",
    "Reasoning",
    "Domains",
    "Input_language",
    "Output_language",
    "Instruction_language",
    "Instance License",
)
SPLIT_LISTS = ("train_tasks.txt", "test_tasks.txt", "excluded_tasks.txt")


def is_task(row: object) -> bool:
    """Whether a JSON value is that of a task file."""
    return isinstance(row, dict) and "Definition" in row and "Instances" in row


def records(task: Mapping[str, Any], name: str, file: str) -> Iterator[tuple[str, Record | str]]:
    """Yield (location, record or problem) for each instance of a task.

    Definitions and outputs may be strings or lists of strings. The first of several categories is
    used, as in the script of the paper. Raises DataError when the task as a whole is invalid.
    """
    definition = _strings(task["Definition"])
    if not definition:
        raise DataError(f"{file}: 'Definition' is not a text or a list of texts")
    category = next(iter(_strings(task.get("Categories"))), "").strip()
    positive, negative = (
        tuple(_demonstrations(task.get(f"{kind} Examples", []), f"{file}: '{kind} Examples'"))
        for kind in ("Positive", "Negative")
    )
    if not isinstance(task["Instances"], list) or not task["Instances"]:
        raise DataError(f"{file}: 'Instances' is not a list with an instance in it")
    for number, instance in enumerate(task["Instances"], 1):
        where = f"{file}, instance {number}"
        outputs = _strings(instance.get("output")) if isinstance(instance, dict) else ()
        if not isinstance(instance, dict) or not isinstance(instance.get("input"), str):
            yield where, "it has no text under 'input'"
        elif not any(output.strip() for output in outputs):
            yield where, "'output' holds no text; the response would be empty"
        else:
            references = tuple(output for output in outputs if output.strip())
            yield (
                where,
                Record(
                    definition[0],
                    instance["input"],
                    references[0],
                    references=references,
                    positive=positive,
                    negative=negative,
                    task=name,
                    source=where,
                    category=category,
                ),
            )


def unread(task: Mapping[str, Any]) -> Iterator[str]:
    """Names of fields that nothing reads, without the metadata in NOTES."""
    yield from (str(name) for name in task if name not in (*READ, *NOTES))
    instances = [instance for instance in task["Instances"] if isinstance(instance, dict)]
    yield from {
        f"Instances[].{name}"
        for instance in instances
        for name in instance
        if name not in ("id", "input", "output")
    }


def doubts(task: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about a task by the checks of the repository, with the same words for every task."""
    instances = [instance for instance in task["Instances"] if isinstance(instance, dict)]
    inputs = [str(instance.get("input")).strip() for instance in instances]
    if not FEWEST <= len(instances) <= MOST:
        yield f"instances are fewer than {FEWEST} or more than {MOST:,}"
    if len(set(inputs)) < len(inputs):
        yield "instances have the same input"
    shown = {
        str(e.get("input")).strip()
        for kind in ("Positive", "Negative")
        for e in task.get(f"{kind} Examples", [])
        if isinstance(e, dict)
    }
    if shown.intersection(inputs):
        yield "instances are among the examples"
    labels = collections.Counter(
        output.strip() for instance in instances for output in _strings(instance.get("output"))[:1]
    )
    if 1 < len(labels) < FEW_LABELS and len(instances) >= FEWEST:
        total = labels.total()
        entropy = -sum(n / total * math.log(n / total) for n in labels.values()) / math.log(
            len(labels)
        )
        if entropy <= ENTROPY:
            yield f"labels are unbalanced (normalised entropy at most {ENTROPY})"


def listed(split: str) -> tuple[list[str], list[str]]:
    """(task files, warnings) of a split's list, such as splits/default/train_tasks.txt.

    The list has one name per line; the folder tasks/ is in a parent folder of it. A renamed task is
    found by its number. Raises DataError for a missing task or folder tasks/, and for a list of
    training tasks that shares one with the list of test or excluded tasks beside it.
    """
    path = pathlib.Path(split)
    names = _names(path)
    folder = next(
        (parent / "tasks" for parent in path.resolve().parents if (parent / "tasks").is_dir()), None
    )
    if folder is None:
        raise DataError(
            f"{split} is a list of tasks, and no folder above it has a folder tasks/ with their "
            "files"
        )
    if path.name == SPLIT_LISTS[0]:
        for other in (path.with_name(name) for name in SPLIT_LISTS[1:]):
            if other.exists() and (shared := sorted({*names} & {*_names(other)})):
                raise DataError(
                    f"{split} and {other} share {len(shared)} tasks ({', '.join(shared[:5])}): "
                    "the test would not be one"
                )
    files, warnings = [], []
    for name in names:
        file = folder / f"{name}.json"
        if not file.exists():
            renamed = sorted(folder.glob(f"{name.split('_')[0]}_*.json"))
            if len(renamed) != 1:
                raise DataError(f"{split} lists {name!r}, and there is no {file}")
            warnings.append(f"{name} is read from {renamed[0].name}, which has its number")
            file = renamed[0]
        files.append(os.path.relpath(file) if not path.is_absolute() else str(file))
    return files, warnings


def _names(path: pathlib.Path) -> list[str]:
    try:
        return [
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error}); expected the name of a task on each line"
        ) from None


def _strings(value: object) -> tuple[str, ...]:
    """A string, or the strings of a list, as a tuple; () for anything else."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(x for x in values if isinstance(x, str))


def _demonstrations(examples: object, where: str) -> Iterator[Demonstration]:
    for number, example in enumerate(examples if isinstance(examples, list) else [], 1):
        outputs = _strings(example.get("output")) if isinstance(example, dict) else ()
        if (
            not isinstance(example, dict)
            or not isinstance(example.get("input"), str)
            or not outputs
        ):
            raise DataError(f"{where}, example {number}: expected texts under 'input' and 'output'")
        explanation = example.get("explanation")
        yield Demonstration(
            example["input"], outputs[0], explanation if isinstance(explanation, str) else None
        )
