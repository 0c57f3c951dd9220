"""Answers of a model with rewards, as data: the best of n, rejection sampling, and pairs.

Every batch of prompts adds a line for each prompt to answers.jsonl, so a command that was
interrupted goes on with the next batch. Draws depend on (seed, prompt, place) alone, not on the
mesh of the config, over which the model is sharded.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm import folders, rewards
from lm.data.read import sources
from lm.distributed import sharding
from lm.distributed.mesh import make_mesh
from lm.errors import ConfigError
from lm.generation.engine import Engine, at_once
from lm.generation.requests import Request, bucket
from lm.synthesis import files
from lm.tasks.checked import plain
from lm.tasks.policy import Policy
from lm.tasks.prompts import Prompts, checked
from lm.tasks.rollouts import answer_of
from lm.training import settings
from lm.training.initial_model import initial_model
from lm.training.setup import Reader
from lm.weights.runs import paths

ANSWERS, CHOSEN, PAIRS = "answers.jsonl", "chosen.jsonl", "pairs.jsonl"
ROWS = 64  # answers drawn at a time, if task.slots is 0
KEEP = ("best", "all")
# fields of the task that affect what is drawn
DRAWN = (
    "prompt_field",
    "template",
    "group",
    "new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
)
Say = Callable[[str, int, int, str], None]  # name of the step, done, of, what else
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Made:
    """Rows that were written, and means over the prompts by name."""

    chosen: list[Row]
    pairs: list[Row]
    report: dict[str, float]


def run(config: Any, folder: Path, keep: str, least: float, say: Say) -> Made:
    """Draw and reward `task.group` answers to all prompts of data.files, and select some.

    config: of a task that learns from rewards, with the model in init_from. keep: "best" answer to
    a prompt, or "all" different ones. least: reward that a kept answer needs. Raises ConfigError,
    DataError and WeightsError.
    """
    parts = _check(config, keep, least)
    mesh = make_mesh(**config.mesh.to_dict())
    task: Policy = parts.main.task
    section = config.task.to_dict()
    given = {name: config[name] for name in ("init_from", "seed", "length", "batch_size")}
    given |= {"task.rewards": section["rewards"]} | {f"task.{n}": section[n] for n in DRAWN}
    given["prompts"] = sources.content_hash(sources.find_files(config.data.files))
    folders.refuse("workdir", folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.same_settings(folder, given)
    place = paths.resolve(str(folder))
    model, params, tokenizer, template = initial_model(parts, place, resuming=False)
    rules = {**sharding.PARAMETERS, **config.sharding.parameters}
    params = sharding.placed(mesh, model, params, rules)
    reader = Reader(place, model, tokenizer, template, parts)
    prompts = checked(task.rows(config.data.files, "all", reader.tools(config)))
    step = files.Step(folder / ANSWERS, config.batch_size, len(prompts))
    with sharding.activate(mesh, {**sharding.ACTIVATIONS, **config.sharding.activations}):
        _draw(step, task, prompts, (model, params, tokenizer), config, say)
    return _selected(step.rows, folder, keep, least)


def _draw(step: files.Step, task: Policy, prompts: Prompts, loaded, config: Any, say: Say) -> None:
    """Answer and reward the prompts that `step` does not have yet, in the active mesh.

    loaded: model, params and tokenizer.
    """
    model, params, tokenizer = loaded
    engine, constant = _engine(task, model, prompts, config.seed), 0
    while (done := len(step.rows)) < len(prompts):
        numbers = range(done, min(done + config.batch_size, len(prompts)))
        asked = [_request(task, model, prompts, n, i) for n in numbers for i in range(task.group)]
        got = sorted(engine.run(params, asked), key=lambda one: one.number)
        of = [number for number in numbers for _ in range(task.group)]
        answers = [
            answer_of(prompts, number, one, tokenizer) for number, one in zip(of, got, strict=True)
        ]
        scores = rewards.score(task.reward_functions, answers, task.max_bad_rewards)
        constant = rewards.check_constant(
            task.reward_functions, scores.total, constant, task.max_constant
        )
        step.append(_rows(task, answers, scores))
        mean = np.nanmean(scores.total)
        say("prompts", len(step.rows), len(prompts), f"mean reward {mean:.3g}")


def _check(config: Any, keep: str, least: float):
    """Parts of the config, which is checked as for a training run."""
    if keep not in KEEP:
        raise ConfigError(f"--keep={keep!r}: expected one of {', '.join(KEEP)}")
    if math.isnan(least):
        raise ConfigError(f"--least={least}: expected a number")
    parts = settings.check(config, math.prod(size for size in config.mesh.values() if size > 0))
    if not isinstance(plain(parts.main.task), Policy):
        raise ConfigError(
            f"task.name={config.task.name!r} has no rewards: expected a config of a policy, such "
            "as configs/grpo.py"
        )
    if not config.init_from:
        raise ConfigError("init_from is not set: give the model that answers")
    if parts.main.task.group < 2:
        raise ConfigError(
            f"task.group={parts.main.task.group}: expected at least 2 answers to a prompt"
        )
    return parts


def _request(task: Policy, model, prompts: Prompts, number: int, place: int) -> Request:
    ids, key = prompts.ids[number], number * task.group + place
    if model.config.encoder_layers:
        return Request([model.config.decoder_start_token_id], task.new_tokens, ids, key)
    return Request(ids, task.new_tokens, (), key)


def _engine(task: Policy, model, prompts: Prompts, seed: int) -> Engine:
    most, encoder = max(map(len, prompts.ids)), bool(model.config.encoder_layers)
    written, share = task.new_tokens + (1 if encoder else most), at_once()
    return Engine(
        model,
        rows=task.slots or share * math.ceil(min(ROWS, len(prompts) * task.group) / share),
        length=bucket(max(written, 1 if encoder else bucket(most))),
        encoder_length=bucket(most) if encoder else 0,
        sampler=task.sampler,
        seed=seed,
        prompt_length=most,
    )


def _rows(task: Policy, answers: Sequence[rewards.Answer], scores: rewards.Scores) -> list[Row]:
    """A row for each prompt. The reward of an answer is None where a function failed."""
    rows = []
    for first in range(0, len(answers), task.group):
        own = range(first, first + task.group)
        rows.append(
            {
                "prompt": answers[first].prompt,
                "answers": [
                    {
                        "text": answers[i].text,
                        "reward": None if np.isnan(scores.total[i]) else float(scores.total[i]),
                        "ended": answers[i].ended,
                    }
                    for i in own
                ],
            }
        )
    return rows


def _selected(rows: Sequence[Row], folder: Path, keep: str, least: float) -> Made:
    """Write the answers that are kept, and pairs of the best and the worst answer."""
    chosen, pairs, means, bests = [], [], [], []
    for row in rows:
        ranked = _ranked(row["answers"])
        if not ranked:
            continue
        best, worst = ranked[0], ranked[-1]
        bests.append(best["reward"])
        given = [one["reward"] for one in row["answers"] if one["reward"] is not None]
        means.append(float(np.mean(given)))
        chosen += [
            {"prompt": row["prompt"], "completion": one["text"], "reward": one["reward"]}
            for one in (ranked if keep == "all" else ranked[:1])
            if one["reward"] >= least
        ]
        if best["reward"] > worst["reward"] and best["reward"] >= least:
            pairs.append(
                {
                    "prompt": row["prompt"],
                    "chosen": best["text"],
                    "rejected": worst["text"],
                    "score_chosen": best["reward"],
                    "score_rejected": worst["reward"],
                }
            )
    files.write_rows(folder / CHOSEN, chosen)
    files.write_rows(folder / PAIRS, pairs)
    if not chosen:
        raise ConfigError(
            f"none of the answers to {len(rows):,} prompts has a reward of at least {least:g} and "
            f"a text: see {folder / ANSWERS}; lower --least, or draw more with task.group"
        )
    report = {"mean_reward": float(np.mean(means)), "best_reward": float(np.mean(bests))}
    return Made(chosen, pairs, report)


def _ranked(answers: Sequence[Row]) -> list[Row]:
    """Different answers with a text, an end and a reward, the best first; earlier ones first."""
    different: dict[str, Row] = {}
    for one in answers:
        if one["text"].strip() and one["ended"] and one["reward"] is not None:
            different.setdefault(one["text"].strip(), one)
    return sorted(different.values(), key=lambda one: -one["reward"])
