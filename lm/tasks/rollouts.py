"""Source of rollouts: prompts are answered by the model as it is, scored, and learned from.

The engine decodes with the state's own parameters. The tokens drawn are those learned from; text is
only made for the rewards. What was drawn and is not used yet is carried in the checkpoint.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lm import rewards
from lm.batch import Batch
from lm.data.source import Source, SourceTools
from lm.generation.decode import everywhere
from lm.generation.engine import Engine
from lm.generation.requests import Generated, Request, bucket
from lm.losses import chunks
from lm.losses.log_probs import log_probs
from lm.losses.tokens import head_of
from lm.models.config import ConfigError
from lm.tasks.prompts import Prompts

Arrays = dict[str, np.ndarray]
TOKEN_FIELDS = ("tokens", "targets", "weights", "segments", "positions")
COUNTS = ("asked", "rollouts", "used", "constant")  # of a position
KEYS = 2**31 - 1  # numbers of requests, which are int32


def token_log_probs(
    model, params: dict, batch: Batch, temperature: float, chunk: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the targets and entropies, float32 [N, T] each, without dropout.

    The logits are divided by `temperature`: the distribution that answers are drawn from.
    """
    hidden = model.apply({"params": params}, batch, method="hidden").hidden
    logits, head = head_of(model, params)
    chunk = chunk or chunks.chunk_length(*batch.tokens.shape, model.config.vocab_size)
    return log_probs(logits, head, hidden, batch.targets, chunk, temperature)


@functools.partial(jax.jit, static_argnames=("model", "temperatures", "chunk"))
def scored(
    model, params: dict, batch: Batch, temperatures: tuple[float, ...], chunk: int
) -> list[jax.Array]:
    """Log-probabilities of the targets at each temperature, [N, T], on every device."""
    return [
        everywhere(token_log_probs(model, params, batch, temperature, chunk)[0])
        for temperature in temperatures
    ]


@functools.partial(jax.jit, static_argnames="model")
def critic_values(model, params: dict, batch: Batch) -> jax.Array:
    """Values of a critic at every token, float32 [N, T], on every device."""
    return everywhere(model.apply({"params": params}, batch).logits)


class Rollouts(Source):
    """Batches [B, G, T] of answers: G to each of B prompts, for several updates a rollout.

    task: `lm.tasks.policy.Policy`, whose fields say how answers are drawn.
    """

    def __init__(self, task: Any, prompts: Prompts, tools: SourceTools):
        self.task, self.prompts, self.tools = task, prompts, tools
        self.size = tools.batch_size * task.minibatches  # prompts of a rollout
        self.rewards = task.reward_functions
        self.served = self.asked = self.rollouts = self.used = self.constant = 0
        self.unused: Arrays = {}
        self.engine: Engine | None = None

    # -------------------------------------------------------------------------------- the seam

    def next(self, state: Any) -> Batch:
        if not self.unused:
            self.unused, self.used = self._rollout(state), 0
            self.rollouts += 1
        size, parts = self.tools.batch_size, self.task.minibatches
        epoch, part = divmod(self.used, parts)
        order = np.random.default_rng((self.tools.seed, self.rollouts, epoch)).permutation(
            self.size
        )
        rows = np.sort(order[part * size : (part + 1) * size])
        fields = {name: values[rows] for name, values in self.unused.items()}
        self.used += 1
        self.served += size
        if self.used == self.task.epochs * parts:
            self.unused = {}
        return Batch.made(fields)

    def position(self) -> dict:
        return {"rows": self.served, **{name: getattr(self, name) for name in COUNTS}}

    def carry(self) -> Arrays:
        return self.unused

    def restore(self, position: dict, carry: Mapping[str, np.ndarray]) -> None:
        self.served, self.unused = position["rows"], dict(carry)
        for name in COUNTS:
            setattr(self, name, position[name])
        wanted = (self.size, self.task.group)
        found = np.shape(self.unused["rewards"]) if self.unused else wanted
        if found != wanted:
            raise ConfigError(
                f"the checkpoint carries a rollout of {found[0]} prompts with {found[1]} answers, "
                f"and the config asks for {wanted[0]} with {wanted[1]}: batch_size, "
                "task.minibatches and task.group must stay until the rollout is used"
            )

    # --------------------------------------------------------------------------------- a rollout

    def _rollout(self, state: Any) -> Arrays:
        """Draw, score and weigh answers to `size` prompts, [size, G, ...]."""
        params, task = self.tools.params(state), self.task
        kept, flat, drawn = [], [], 0
        for _ in range(task.rounds):
            arrays = self._draw(params)
            drawn += self.size
            signal = np.ptp(arrays["rewards"], axis=1) > 0
            useful = signal if task.rounds > 1 else np.ones_like(signal)
            kept.append({name: x[useful] for name, x in arrays.items()})
            flat.append({name: x[~useful] for name, x in arrays.items()})
            if sum(len(part["rewards"]) for part in kept) >= self.size:
                break
        # groups without a signal only fill up what is missing
        arrays = {
            name: np.concatenate([part[name] for part in (*kept, *flat)])[: self.size]
            for name in kept[0]
        }
        shape = arrays["rewards"].shape
        arrays["draws"] = np.full(shape, drawn / self.size, np.float32)
        self.constant = rewards.check_constant(
            self.rewards, arrays["rewards"], self.constant, task.max_constant
        )
        self._compare(params, arrays)
        beside = self.tools.beside(state) if self.tools.beside is not None else {}
        if "reference" in beside:
            one = beside["reference"]
            (arrays["reference_log_probs"],) = self._log_probs(
                one.model, one.params, arrays, (task.temperature,)
            )
        if "critic" in beside:
            one = beside["critic"]
            (arrays["old_values"],) = self._in_parts(
                arrays, lambda batch: [critic_values(one.model, one.params, batch)]
            )
        return task.finished(arrays)

    def _compare(self, params: dict, arrays: Arrays) -> None:
        """Add the learner's log-probabilities, and their largest difference from the engine's."""
        drawn, weights = arrays.pop("drawn_log_probs"), arrays["weights"]
        temperatures = tuple(dict.fromkeys((self.task.temperature, 1.0)))
        found = self._log_probs(self.tools.model, params, arrays, temperatures)
        arrays["old_log_probs"] = found[0]
        answered = arrays.pop("answered") > 0
        arrays["mismatch"] = np.max(np.abs(found[-1] - drawn) * answered, axis=-1)
        arrays["old_log_probs"] = np.where(weights > 0, arrays["old_log_probs"], 0.0)

    def _log_probs(self, model, params: dict, arrays: Arrays, temperatures) -> list[np.ndarray]:
        return self._in_parts(
            arrays, lambda batch: scored(model, params, batch, temperatures, self.task.chunk)
        )

    def _in_parts(self, arrays: Arrays, function) -> list[np.ndarray]:
        """Apply a function of a flat batch to one update's rows at a time: results [size, G, T]."""
        names = [name for name in arrays if name in TOKEN_FIELDS or name.startswith("encoder_")]
        size, found = self.tools.batch_size, []
        for first in range(0, self.size, size):
            part = {name: arrays[name][first : first + size] for name in names}
            batch = Batch.made(part).ungrouped()
            found.append([np.asarray(x) for x in jax.device_get(function(batch))])
        joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        return [x.reshape(self.size, self.task.group, -1) for x in joined]

    # ----------------------------------------------------------------------------------- drawing

    def _draw(self, params: dict) -> Arrays:
        """Answers to the next `size` prompts, [size, G, ...], with their rewards."""
        task, group = self.task, self.task.group
        numbers = self.asked + np.arange(self.size)
        chosen = [self._prompt(int(number)) for number in numbers]
        start = self.tools.model.config.decoder_start_token_id
        asked = []
        for number, prompt in zip(numbers, chosen, strict=True):
            ids = self.prompts.ids[prompt]
            tokens, read = ([start], ids) if self.encoder else (ids, ())
            for place in range(group):
                key = (int(number) * group + place) % KEYS
                asked.append(Request(tokens, task.new_tokens, read, key))
        if self.engine is None:
            self.engine = self._engine()
        got: list[Generated | None] = [None] * len(asked)
        for one in self.engine.run(params, asked):
            if one.error:
                raise ConfigError(f"a prompt was refused: {one.error}")
            got[one.number] = one
        self.asked += self.size
        answers = [one for one in got if one is not None]
        found = self._arrays(asked, answers)
        found |= self._rewarded([p for p in chosen for _ in range(group)], answers, found)
        return {name: x.reshape(self.size, group, *x.shape[1:]) for name, x in found.items()}

    @property
    def encoder(self) -> bool:
        return bool(self.tools.model.config.encoder_layers)

    def _prompt(self, number: int) -> int:
        """The prompt at a place of the endless stream, which every epoch shuffles anew."""
        epoch, at = divmod(number, len(self.prompts))
        return int(_order(self.tools.seed, epoch, len(self.prompts))[at])

    def _engine(self) -> Engine:
        """An engine with a slot for each answer, and one shape for all prompts."""
        task, most = self.task, max(map(len, self.prompts.ids))
        written = task.new_tokens + (1 if self.encoder else most)
        return Engine(
            self.tools.model,
            rows=task.slots or self.size * task.group,
            length=bucket(max(written, 1 if self.encoder else bucket(most))),
            encoder_length=bucket(most) if self.encoder else 0,
            sampler=task.sampler,
            seed=self.tools.seed,
            prompt_length=most,
            separate=False,  # no second copy of the weights
        )

    def _arrays(self, asked: Sequence[Request], answers: Sequence[Generated]) -> Arrays:
        """Rows [N, T]: inputs and targets of prompts and answers, with the engine's figures."""
        task, rows = self.task, len(asked)
        length = task.row_length(self.tools.length, self.tools.model.config)
        tokens, targets, segments = (np.zeros((rows, length), np.int32) for _ in range(3))
        drawn, answered = (np.zeros((rows, length), np.float32) for _ in range(2))
        for row, (request, got) in enumerate(zip(asked, answers, strict=True)):
            whole = [*request.tokens, *got.tokens]
            first, last = len(request.tokens) - 1, len(whole) - 1
            tokens[row, :last], targets[row, :last] = whole[:-1], whole[1:]
            segments[row, :last], answered[row, first:last] = 1, 1
            drawn[row, first:last] = got.log_probs
        ended = np.array([got.finish == "stop" for got in answers], np.float32)
        weights = answered * ended[:, None] if task.mask_truncated else answered
        batch = Batch.of(tokens, segments, targets=targets, weights=weights, **self._read(asked))
        return {name: np.asarray(x) for name, x in batch.fields().items()} | {
            "drawn_log_probs": drawn,
            "answered": answered,
            "ended": ended,
            "lengths": answered.sum(axis=1),
        }

    def _read(self, asked: Sequence[Request]) -> dict[str, np.ndarray]:
        if not self.encoder:
            return {}
        read, of = (np.zeros((len(asked), self.tools.length), np.int32) for _ in range(2))
        for row, request in enumerate(asked):
            size = len(request.encoder_tokens)
            read[row, :size], of[row, :size] = request.encoder_tokens, 1
        return {"encoder_tokens": read, "encoder_segments": of}

    def _rewarded(
        self, prompts: Sequence[int], answers: Sequence[Generated], found: Arrays
    ) -> Arrays:
        """Rewards [N]. An answer without one has no weight, and the mean of its group."""
        given = rewards.score(
            self.rewards,
            [
                answer_of(self.prompts, prompt, got, self.tools.tokenizer)
                for prompt, got in zip(prompts, answers, strict=True)
            ],
            self.task.max_bad_rewards,
        )
        bad = np.isnan(given.total)
        groups = given.total.reshape(-1, self.task.group)
        mean = np.nansum(groups, axis=1) / np.maximum((~np.isnan(groups)).sum(axis=1), 1)
        filled = np.where(bad, mean.repeat(self.task.group), given.total)
        weights = found["weights"] * ~bad[:, None]
        return {"rewards": filled.astype(np.float32), "weights": weights.astype(np.float32)}


def answer_of(prompts: Prompts, number: int, got: Generated, tokenizer) -> rewards.Answer:
    """What the rewards see of an answer."""
    text = tokenizer.decode(got.answer, skip_special_tokens=True)
    return rewards.Answer(
        prompts.texts[number],
        text,
        prompts.records[number],
        got.finish == "stop",
        len(got.tokens),
    )


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def finite(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise ConfigError unless least <= task.`name` <= most."""
    if not (least <= value <= most and math.isfinite(value)):
        upper = "" if most == math.inf else f", at most {most:g}"
        raise ConfigError(f"task.{name}={value}: expected a number of at least {least:g}{upper}")
