"""Rewards of answers to held-out prompts, for a task that learns from rewards."""

import dataclasses
import math
from typing import Any

import numpy as np

from lm import rewards, tasks
from lm.distributed import sharding
from lm.evaluation.evaluators.evaluator import Evaluator, Prepared, Result, Tools
from lm.evaluation.generation import spread
from lm.generation.engine import Engine, at_once
from lm.generation.requests import Request, bucket
from lm.generation.samplers import Greedy
from lm.models.config import ConfigError
from lm.tasks.checked import plain
from lm.tasks.policy import Policy
from lm.tasks.prompts import checked
from lm.tasks.rollouts import answer_of


@dataclasses.dataclass(frozen=True)
class Rewards(Evaluator):
    """Answers to prompts with the rewards of the run's task: their means, and some to read."""

    files: str = ""  # prompts, as data.files; or "holdout_share"
    max_examples: int = 64  # prompts, evenly spaced over all; 0 = all
    greedy: bool = True  # the most probable tokens; False = drawn as in training
    shown: int = 4  # answers in samples.md

    def check(self, config) -> None:
        if not self.files:
            raise ConfigError("files is not set: give files of prompts, or 'holdout_share'")
        for name in ("max_examples", "shown"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more")
        task = tasks.of(config)
        if not isinstance(plain(task), Policy):
            raise ConfigError(
                f"type='rewards' measures the rewards of a policy, and task.name={task.name!r} has "
                "none"
            )

    def prepare(self, tools: Tools) -> Prepared:
        prompts, task, c = checked(tools.rows(self.files)), tools.task, tools.model.config
        numbers = spread(range(len(prompts)), self.max_examples)
        most = max(len(prompts.ids[number]) for number in numbers)
        encoder = bool(c.encoder_layers)
        start: Any = c.decoder_start_token_id
        asked = [
            Request([start], task.new_tokens, prompts.ids[n], key)
            if encoder
            else Request(prompts.ids[n], task.new_tokens, (), key)
            for key, n in enumerate(numbers)
        ]
        length = task.new_tokens + (1 if encoder else most)

        def evaluate(params: dict, step: int) -> Result:
            with sharding.activate(tools.mesh, tools.activations):
                share = at_once()
                engine = Engine(
                    tools.model,
                    rows=share * math.ceil(min(len(asked), 64) / share),
                    length=bucket(max(length, 1 if encoder else bucket(most))),
                    encoder_length=bucket(most) if encoder else 0,
                    sampler=Greedy() if self.greedy else task.sampler,
                    prompt_length=most,
                )
                got: Any = sorted(engine.run(params, asked), key=lambda one: one.number)
            answers = [
                answer_of(prompts, number, one, tools.tokenizer)
                for number, one in zip(numbers, got, strict=True)
            ]
            scores = rewards.score(task.reward_functions, answers, task.max_bad_rewards)
            return self._result(answers, scores)

        return evaluate

    def _result(self, answers: list[rewards.Answer], scores: rewards.Scores) -> Result:
        values: dict[str, float | None] = {"reward": float(np.nanmean(scores.total))}
        if len(scores.each) > 1:
            values |= {name: float(np.nanmean(x)) for name, x in scores.each.items()}
        values["answer_length"] = float(np.mean([answer.tokens for answer in answers]))
        values["ended"] = float(np.mean([answer.ended for answer in answers]))
        shown = []
        for i in spread(range(len(answers)), self.shown) if self.shown else ():
            marks = [f"reward {scores.total[i]:.3g}"]
            marks += [
                f"{name} {x[i]:.3g}" for name, x in scores.each.items() if len(scores.each) > 1
            ]
            end = [] if answers[i].ended else ["not ended"]
            shown.append((answers[i].prompt, f" {answers[i].text}\n\n({', '.join(marks + end)})"))
        said = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())
        return Result(values, f"{len(answers)} answers: {said}", shown)
