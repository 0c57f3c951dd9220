"""Prompts of the steps of Self-Instruct, and what is read from their completions.

The forms are the paper's (Wang et al. 2023, appendix A): numbered tasks, "Class label:",
"Example 1", "Output:". Every example in a prompt is a task of the seed file or one that was
accepted, so any seed file will do.
"""

import re
from collections.abc import Sequence
from typing import Any

Task = dict[str, Any]  # a row of the seed file: instruction, instances, is_classification

TASK, LABEL, EXAMPLE, OUTPUT = "Task:", "Class label:", "Example", "Output:"
EMPTY = "<noinput>"  # in the place of an empty input, as in Alpaca's data


def spelled(text: str) -> str:
    """One line, without a colon at its end."""
    return re.sub(r"\s+", " ", text).strip().rstrip(":")


def instructions(examples: Sequence[str], classification: bool = False) -> str:
    """A numbered list that the model continues."""
    kind = "classification tasks. Give the possible labels" if classification else "tasks"
    listed = "".join(f"{n}. {spelled(text)}\n" for n, text in enumerate(examples, 1))
    return f"Come up with a series of {kind}:\n\n{listed}{len(examples) + 1}."


def read_instructions(completion: str, complete: bool) -> list[str]:
    """The tasks of a numbered list. The last one of an incomplete completion is left out."""
    found = [spelled(text) for text in re.split(r"\n\s*\d+\s?\.", completion)]
    return found if complete else found[:-1]


def is_classification(examples: Sequence[Task], text: str) -> str:
    """A question that the model answers with Yes or No."""
    asked = "".join(
        f"{TASK} {spelled(one['instruction'])}\nIs it classification? "
        f"{'Yes' if one['is_classification'] else 'No'}\n\n"
        for one in examples
    )
    return (
        "Is the answer to the task one of a few labels?\n\n"
        f"{asked}{TASK} {spelled(text)}\nIs it classification?"
    )


def read_classification(completion: str) -> bool | None:
    """The answer; None where it is neither."""
    word = completion.strip().lower()
    return True if word.startswith("yes") else False if word.startswith("no") else None


def instances(examples: Sequence[Task], text: str, classification: bool) -> str:
    """Tasks with their instances. Output first for classification, so that labels are balanced."""
    if classification:
        head = "Given a task, write each class label and an input that fits it."
        return _joined(head, examples, text, _with_labels) + f"\n{LABEL}"
    head = "Write examples for each task. Leave out the input where none is needed."
    return _joined(head, examples, text, _with_inputs)


def _joined(head: str, examples: Sequence[Task], text: str, shown) -> str:
    before = "".join(
        f"{TASK} {spelled(one['instruction'])}\n{shown(one['instances'])}\n\n" for one in examples
    )
    return f"{head}\n\n{before}{TASK} {spelled(text)}"


def _with_labels(found: Sequence[dict[str, str]]) -> str:
    return "\n".join(f"{LABEL} {one['output'].strip()}\n{one['input'].strip()}" for one in found)


def _with_inputs(found: Sequence[dict[str, str]]) -> str:
    if not any(one["input"].strip() for one in found):
        return f"{OUTPUT} {found[0]['output'].strip()}"
    return "\n".join(
        f"{EXAMPLE} {n}\n{one['input'].strip()}\n{OUTPUT} {one['output'].strip()}"
        for n, one in enumerate(found, 1)
    )


def read_instances(completion: str, complete: bool, classification: bool) -> list[dict[str, str]]:
    """Instances of a completion; the last one of several is left out if it is incomplete."""
    completion = completion.split(f"\n{TASK}")[0]
    found = []
    if classification:
        for piece in completion.split(LABEL):
            label, _, given = piece.strip().partition("\n")
            if label:
                found.append({"input": given.strip(), "output": label.strip()})
    else:
        for piece in re.split(rf"{EXAMPLE}\s?\d*\.?:?", completion):
            if OUTPUT in piece:
                given, _, output = piece.partition(OUTPUT)
                found.append({"input": given.replace(EMPTY, "").strip(), "output": output.strip()})
    return found if complete or len(found) < 2 else found[:-1]


def alpaca(examples: Sequence[Task], wanted: int) -> str:
    """Alpaca's one prompt: tasks with input and output, of which the model writes the rest."""
    head = (
        f"A list of {wanted} diverse tasks. Each has an instruction of one or two sentences, an "
        f"input or {EMPTY}, and a correct output."
    )
    shown = []
    for n, one in enumerate(examples, 1):
        first = one["instances"][0]
        shown.append(
            f"{n}. Instruction: {spelled(one['instruction'])}\n{n}. Input:\n"
            f"{first['input'].strip() or EMPTY}\n{n}. Output:\n{first['output'].strip()}\n###\n"
        )
    return f"{head}\n\n{''.join(shown)}{len(examples) + 1}. Instruction:"


def read_alpaca(completion: str, complete: bool) -> list[Task]:
    """Tasks of a completion of `alpaca`; those without all three parts are left out."""
    pieces = re.split(r"\n?###\s*", f"1. Instruction:{completion}")
    found = []
    for piece in pieces if complete else pieces[:-1]:
        parts = re.split(r"\d+\s?\.\s+(?:Instruction|Input|Output):", piece)
        if len(parts) == 4:
            text, given, output = (part.strip() for part in parts[1:])
            given = "" if given.lower().strip("<>.") == EMPTY.strip("<>") else given
            found.append(
                {"instruction": spelled(text), "instances": [{"input": given, "output": output}]}
            )
    return found
