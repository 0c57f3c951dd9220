"""Settings of Self-Instruct, which are the fields of its config."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.errors import ConfigError, nearest
from lm.synthesis.prompts import Task

VARIANTS = ("self_instruct", "alpaca")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields of a config; defaults are the paper's, where it names them."""

    seed: int = 0
    seeds: str = ""  # JSONL: instruction, instances [{input, output}], is_classification
    # Run, directory, hub id or .gguf file; or module:function of your own, see
    # lm.synthesis.generator.
    generator: str = ""
    variant: str = "self_instruct"  # or alpaca: 3 seeds, and tasks with input and output at once
    instructions: int = 100  # to keep
    requests: int = 1000  # at most, in the first step: a generator may stop having ideas
    human: int = 6  # seeds in a prompt (alpaca: all examples are seeds)
    machine: int = 2  # instructions of the model itself in a prompt
    asked: int = 8  # instructions that are asked for in one request
    similarity: float = 0.7  # ROUGE-L to another instruction at which one is not new
    shortest: int = 4  # words of an instruction
    longest: int = 150
    examples: int = 8  # tasks in the prompts of the second and third step
    instances: int = 5  # of a task at most
    temperature: float = 0.7  # of the first step; the others are greedy
    top_p: float = 0.5
    repetition_penalty: float = 1.0  # of all steps; see lm.Sample
    instruction_tokens: int = 256  # of a completion in the first step
    instance_tokens: int = 300  # and in the third
    batch_size: int = 8  # requests at a time
    context: int = 1024  # tokens of a prompt with its completion; examples that do not fit are left
    # Share of tasks in `seeds` that may be unusable; they are left out and counted.
    max_bad_share: float = 0.0
    max_barren: int = 64  # requests in a row of which nothing is kept: then it stops


def of_config(config: Mapping[str, Any]) -> Settings:
    """Settings of a config. Raises ConfigError for a field or a value that cannot be."""
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in config:
        if name not in known:
            raise ConfigError(f"the config has no field {name!r}{nearest(name, known)}")
    s = Settings(**dict(config))
    for field in dataclasses.fields(Settings):
        value, usual = getattr(s, field.name), field.default
        number = isinstance(usual, int | float)
        if number and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"{field.name}={value!r}: expected a number")
        if isinstance(usual, str) and not isinstance(value, str):
            raise ConfigError(f"{field.name}={value!r}: expected a text")
    for name in ("instructions", "requests", "human", "asked", "shortest", "examples", "instances"):
        _expect(name, getattr(s, name), getattr(s, name) >= 1, "1 or more")
    for name in ("instruction_tokens", "instance_tokens", "batch_size", "context", "max_barren"):
        _expect(name, getattr(s, name), getattr(s, name) >= 1, "1 or more")
    _expect("machine", s.machine, s.machine >= 0, "0 or more")
    _expect("longest", s.longest, s.longest >= s.shortest, f"at least shortest={s.shortest}")
    _expect("similarity", s.similarity, 0 < s.similarity <= 1, "a ROUGE-L in (0, 1]")
    _expect("max_bad_share", s.max_bad_share, 0 <= s.max_bad_share < 1, "a share in [0, 1)")
    if s.variant not in VARIANTS:
        raise ConfigError(
            f"variant={s.variant!r} is unknown{nearest(s.variant, VARIANTS)}: expected "
            f"{' or '.join(VARIANTS)}"
        )
    for name, what in (
        ("seeds", "a JSONL file of tasks"),
        ("generator", "a model or module:function"),
    ):
        if not getattr(s, name):
            raise ConfigError(f"{name} is not set: give {what}, as --config.{name}=...")
    return s


def _expect(name: str, value: Any, right: bool, what: str) -> None:
    if not right:
        raise ConfigError(f"{name}={value!r}: expected {what}")


def read_seeds(s: Settings) -> tuple[list[Task], list[str]]:
    """The tasks of the seed file, and why others cannot be used, a line each.

    Raises ConfigError for a file that cannot be read, or with more unusable tasks than allowed.
    """
    path = Path(s.seeds)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"seeds={s.seeds!r} cannot be read: {error}") from None
    tasks: list[Task] = []
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            tasks.append(_task(json.loads(line)))
        except json.JSONDecodeError as error:
            bad.append(f"{path}:{number}: not JSON ({error.msg})")
        except ConfigError as error:
            bad.append(f"{path}:{number}: {error}")
    if len(bad) > s.max_bad_share * (len(bad) + len(tasks)):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ConfigError(
            f"{bad[0]}{more}; mend them, or set max_bad_share to leave such tasks out"
        )
    if not tasks:
        raise ConfigError(f"seeds={s.seeds!r}: no task in it")
    return tasks, bad


def _task(row: Any) -> Task:
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        raise ConfigError("expected an object with the text 'instruction'")
    found = row.get("instances")
    if not isinstance(found, list) or not found:
        raise ConfigError("'instances' is not a list with an instance in it")
    for one in found:
        if not isinstance(one, dict) or not isinstance(one.get("output"), str):
            raise ConfigError("an instance has no text 'output'")
        if not one["output"].strip():
            raise ConfigError("an instance has an empty output")
        if not isinstance(one.get("input", ""), str):
            raise ConfigError("the 'input' of an instance is not a text")
    if not row["instruction"].strip():
        raise ConfigError("the instruction is empty")
    return {
        "instruction": row["instruction"],
        "instances": [{"input": one.get("input", ""), "output": one["output"]} for one in found],
        "is_classification": bool(row.get("is_classification", False)),
    }
