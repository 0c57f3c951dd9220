"""Generators of Self-Instruct: a model through the engine, or a function of the user's.

A function gets the prompts and an `Asked`, and returns a text, or a `Completion`, for each:

    def generate(prompts: list[str], asked: Asked) -> list[str]: ...

It may call any service. Named as generator="module:function" in a config.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lm import plugins
from lm.errors import ConfigError


class Completion(NamedTuple):
    """complete: False if the budget of tokens ended it."""

    text: str
    complete: bool = True


@dataclasses.dataclass(frozen=True)
class Asked:
    """How to complete prompts.

    keys: a number for each prompt that its random draws depend on. temperature: 0 = greedy. stops:
    texts before which a completion ends.
    """

    keys: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0


Generate = Callable[[list[str], Asked], Sequence[str | Completion]]
Fits = Callable[[str, int], bool]  # (prompt, new tokens) -> whether both fit in the context


def load(
    name: str, seed: int, context: int, batch_size: int, penalty: float
) -> tuple[Generate, Fits]:
    """The generator of a config, and what fits in it. Raises ConfigError."""
    if ":" in name and not os.path.exists(name) and "://" not in name:
        return _function(name), lambda prompt, new: True
    return _model(name, seed, context, batch_size, penalty)


def completions(generate: Generate, prompts: list[str], asked: Asked) -> list[Completion]:
    """Completions of a generator. Raises ConfigError, naming it, for what is no list of texts."""
    where = getattr(generate, "__qualname__", repr(generate))
    try:
        given = list(generate(prompts, asked))
    except ConfigError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise ConfigError(f"generator {where}: {type(error).__name__}: {error}") from error
    found = [Completion(one) if isinstance(one, str) else one for one in given]
    if len(found) != len(prompts) or not all(isinstance(one, Completion) for one in found):
        raise ConfigError(
            f"generator {where} returned {given!r:.80}: expected a text or Completion for each of "
            f"{len(prompts)} prompts"
        )
    return [_stopped(one, asked.stops) for one in found]


def _stopped(found: Completion, stops: Sequence[str]) -> Completion:
    ends = [found.text.find(stop) for stop in stops if stop in found.text]
    return Completion(found.text[: min(ends)], True) if ends else found


def _function(name: str) -> Generate:
    found = plugins.attribute("generator", name, "function")
    if not callable(found):
        raise ConfigError(f"generator={name!r} is {found!r}: expected a function")
    return found


def _model(
    path: str, seed: int, context: int, batch_size: int, penalty: float
) -> tuple[Generate, Fits]:
    from lm.data.encode.encoding import prompt_ids
    from lm.generation.answers import fitting
    from lm.generation.engine import stop_ids
    from lm.generation.requests import requests
    from lm.generation.samplers import Greedy, Sample
    from lm.generation.text import decoded, ending
    from lm.models import for_decoding
    from lm.weights.loading import load as loaded

    model, params, tokenizer = loaded(path)
    model, params = for_decoding(model, params)
    c = model.config
    most = min(context, c.max_length or context)
    encoder = bool(c.encoder_layers)

    def fits(prompt: str, new: int) -> bool:
        size = len(prompt_ids(tokenizer, prompt, encoder))
        return max(size, new) <= most if encoder else size + new <= most

    def generate(prompts: list[str], asked: Asked) -> list[Completion]:
        sampler = (
            Sample(asked.temperature, top_p=asked.top_p, repetition_penalty=penalty)
            if asked.temperature
            else Greedy(penalty)
        )
        ids = [prompt_ids(tokenizer, prompt, encoder) for prompt in prompts]
        made = requests(c, ids, asked.max_new_tokens, None)
        made = [
            dataclasses.replace(one, key=key) for one, key in zip(made, asked.keys, strict=True)
        ]
        engine = fitting(
            model, made, batch_size, sampler=sampler, stop_tokens=stop_ids(model, None), seed=seed
        )
        stopped = lambda _, tokens: ending(decoded(tokenizer, tokens), asked.stops) is not None
        found: dict[int, Completion] = {}
        for one in engine.run(params, made, finished=stopped if asked.stops else None):
            text = decoded(tokenizer, one.answer)
            found[one.number] = Completion(text, one.finish != "length")
        return [found[number] for number in range(len(prompts))]

    return generate, fits
