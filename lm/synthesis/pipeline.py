"""The four steps of Self-Instruct (Wang et al. 2023, section 2.2), and Alpaca's single one.

Every step writes a JSONL file with a line for each request. A request draws from (seed, step, its
number) and from what the batches before it left, so a run that was interrupted goes on with the
first batch that is missing, and ends as one that was not.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import ConfigError
from lm.synthesis import files, filters, prompts
from lm.synthesis.files import Step
from lm.synthesis.generator import Asked, Completion, Fits, Generate, completions
from lm.synthesis.novelty import Novelty
from lm.synthesis.prompts import Task
from lm.synthesis.settings import Settings

TASKS = "tasks.jsonl"
INSTRUCTIONS, KINDS, INSTANCES = "instructions.jsonl", "kinds.jsonl", "instances.jsonl"
MAY_CHANGE = {"instructions", "requests", "max_barren"}  # when a run goes on
STOPS = ("\n\n",)
Say = Callable[[str, int, int, str], None]  # name of the step, done, of, what else


@dataclasses.dataclass(frozen=True)
class Tools:
    """What every step uses. seeds: tasks of the seed file. say: is told of progress."""

    settings: Settings
    seeds: Sequence[Task]
    generate: Generate
    fits: Fits
    folder: Path
    say: Say


def run(tools: Tools) -> list[Task]:
    """Run or continue all steps, write tasks.jsonl, and return its tasks.

    Raises ConfigError where the folder was made with other settings, where the generator fails, and
    where nothing new comes any more.
    """
    tools.folder.mkdir(parents=True, exist_ok=True)
    now = dataclasses.asdict(tools.settings)
    files.same_settings(tools.folder, now, MAY_CHANGE)
    kept = _instructions(tools)
    if tools.settings.variant == "alpaca":
        tasks = kept
    else:
        kinds = _kinds(tools, kept)
        tasks = _instances(tools, kept, kinds)
    path = tools.folder / TASKS
    rows = [
        {"id": f"generated_{number}", "name": f"generated_{number}"} | task
        for number, task in enumerate(tasks)
    ]
    files.write_rows(path, rows)
    return tasks


def _instructions(tools: Tools) -> list[Task]:
    """Step 1: instructions that are new; with Alpaca's prompt, whole tasks."""
    s = tools.settings
    step = Step(tools.folder / INSTRUCTIONS, s.batch_size)
    pool = Novelty(one["instruction"] for one in tools.seeds)
    kept: list[Task] = [one for row in step.rows for one in row["kept"]]
    for one in kept:
        pool.add(one["instruction"])
    while len(kept) < s.instructions:
        done = len(step.rows)
        if done >= s.requests:
            break
        _not_barren(step.rows, s)
        numbers = range(done, min(done + s.batch_size, s.requests))
        asked = [_request(tools, number, kept) for number in numbers]
        found = completions(
            tools.generate,
            asked,
            Asked(
                tuple(numbers),
                s.instruction_tokens,
                ("\n\n",) if s.variant == "self_instruct" else (f"\n{s.asked + s.human + 1}.",),
                s.temperature,
                s.top_p,
            ),
        )
        rows: list[dict[str, Any]] = [
            {"request": number} | _judged(one, s, pool)
            for number, one in zip(numbers, found, strict=True)
        ]
        kept += [one for row in rows for one in row["kept"]]
        step.append(rows)
        share = sum(len(row["kept"]) for row in step.rows) / max(
            sum(row["read"] for row in step.rows), 1
        )
        tools.say(
            "instructions", min(len(kept), s.instructions), s.instructions, f"{share:.0%} new"
        )
    return kept[: s.instructions]


def _request(tools: Tools, number: int, kept: Sequence[Task]) -> str:
    s, rng = tools.settings, np.random.default_rng((tools.settings.seed, 1, number))
    if s.variant == "alpaca":
        return _fitting(
            tools, _some(rng, tools.seeds, s.human), s.instruction_tokens,
            lambda some: prompts.alpaca(some, s.asked + s.human),
        )  # fmt: skip
    own = _some(rng, kept, s.machine)
    some = [*own, *_some(rng, tools.seeds, s.human + s.machine - len(own))]
    texts = [some[at]["instruction"] for at in rng.permutation(len(some))]
    return _fitting(tools, texts, s.instruction_tokens, prompts.instructions)


def _some(rng: np.random.Generator, tasks: Sequence[Any], count: int) -> list[Any]:
    return [tasks[at] for at in rng.permutation(len(tasks))[:count]]


def _fitting(tools: Tools, some: Sequence[Any], new: int, prompt: Callable[[Any], str]) -> str:
    """The prompt with as many examples as fit. Raises ConfigError where none does."""
    for count in range(len(some), 0, -1):
        text = prompt(some[:count])
        if tools.fits(text, new):
            return text
    raise ConfigError(
        f"no prompt fits in context={tools.settings.context} tokens, or in the generator's own "
        f"length, with {new} new ones: raise context, lower instruction_tokens or "
        "instance_tokens, or take a generator that reads more"
    )


def _judged(found: Completion, s: Settings, pool: Novelty) -> dict[str, Any]:
    """What is kept of a completion, with the reasons for what is not."""
    alpaca = s.variant == "alpaca"
    dropped: collections.Counter[str] = collections.Counter()
    tasks: list[Task]
    if alpaca:
        tasks = prompts.read_alpaca(found.text, found.complete)
    else:
        read = prompts.read_instructions(found.text, found.complete)
        tasks = [{"instruction": text} for text in read]
    kept, similarities = [], []
    for task in tasks:
        text = task["instruction"]
        why = filters.instruction(text, s.shortest, s.longest, alpaca)
        if not why and alpaca:
            why = filters.instance(**_io(task["instances"][0]))
        if not why:
            similarity, _ = pool.nearest(text)
            similarities.append(round(similarity, 4))
            why = "" if similarity < s.similarity else "not new"
        if why:
            dropped[why] += 1
            continue
        pool.add(text)
        kept.append(task | {"similarity": similarities[-1]})
    return {"read": len(tasks), "kept": kept, "dropped": dict(dropped)}


def _io(one: dict[str, str]) -> dict[str, str]:
    return {"given": one["input"], "output": one["output"]}


def _not_barren(rows: Sequence[dict[str, Any]], s: Settings) -> None:
    last = rows[-s.max_barren :]
    if len(last) == s.max_barren and not any(row["kept"] for row in last):
        reasons = collections.Counter(
            {name: count for row in last for name, count in row["dropped"].items()}
        )
        why = ", ".join(f"{count} {name}" for name, count in reasons.most_common()) or "no text"
        raise ConfigError(
            f"the last {s.max_barren} requests gave nothing to keep ({why}): take another "
            "generator or temperature, or lower instructions to what there is"
        )


def _kinds(tools: Tools, kept: Sequence[Task]) -> list[bool]:
    """Step 2: whether each instruction is classification. An unclear answer counts as no."""
    s = tools.settings

    def prompt(number: int) -> str:
        rng = np.random.default_rng((s.seed, 2, number))
        yes = [one for one in tools.seeds if one["is_classification"]]
        no = [one for one in tools.seeds if not one["is_classification"]]
        some = _some(rng, yes, s.examples // 2)
        some += _some(rng, no, s.examples - len(some))
        some = [some[at] for at in rng.permutation(len(some))]
        text = kept[number]["instruction"]
        return _fitting(tools, some, 3, lambda few: prompts.is_classification(few, text))

    def row(found: Completion, number: int) -> dict[str, Any]:
        return {"classification": prompts.read_classification(found.text)}

    rows = _each(tools, KINDS, "classification", len(kept), prompt, row, 3, ("\n",))
    return [bool(one["classification"]) for one in rows]


def _instances(tools: Tools, kept: Sequence[Task], kinds: Sequence[bool]) -> list[Task]:
    """Steps 3 and 4: instances of each instruction, filtered."""
    s = tools.settings

    def prompt(number: int) -> str:
        rng = np.random.default_rng((s.seed, 3, number))
        alike = [one for one in tools.seeds if one["is_classification"] == kinds[number]]
        some = _some(rng, alike or tools.seeds, s.examples)
        text, kind = kept[number]["instruction"], kinds[number]
        return _fitting(
            tools, some, s.instance_tokens, lambda few: prompts.instances(few, text, kind)
        )

    def row(found: Completion, number: int) -> dict[str, Any]:
        read = prompts.read_instances(found.text, found.complete, kinds[number])
        reasons = [filters.instance(**_io(one)) for one in read]
        dropped = collections.Counter(why for why in reasons if why)
        left = [one for one, why in zip(read, reasons, strict=True) if not why]
        good, why = filters.consistent(left)
        if why or not read:
            dropped[why or "no instance"] += max(len(left), 1)
        rng = np.random.default_rng((s.seed, 4, number))
        chosen = np.sort(rng.permutation(len(good))[: s.instances])
        return {"instances": [good[at] for at in chosen], "dropped": dict(dropped)}

    stops = (f"\n{prompts.TASK}", f"{prompts.EXAMPLE} {s.instances + 1}")
    rows = _each(tools, INSTANCES, "instances", len(kept), prompt, row, s.instance_tokens, stops)
    return [
        {
            "instruction": task["instruction"],
            "is_classification": kind,
            "instances": row["instances"],
        }
        for task, kind, row in zip(kept, kinds, rows, strict=True)
        if row["instances"]
    ]


def _each(tools, file, name, total, prompt, row, new, stops) -> list[dict[str, Any]]:
    """A greedy request for each of `total` instructions, in batches; the rows made of them."""
    s = tools.settings
    step = Step(tools.folder / file, s.batch_size, total)
    while len(step.rows) < total:
        numbers = range(len(step.rows), min(len(step.rows) + s.batch_size, total))
        found = completions(
            tools.generate,
            [prompt(number) for number in numbers],
            Asked(tuple(numbers), new, stops),
        )
        step.append([row(one, number) for one, number in zip(found, numbers, strict=True)])
        tools.say(name, len(step.rows), total, "")
    return step.rows[:total]
