"""Reward: a plain function that scores one answer, and how a config names and combines several."""

import dataclasses
import functools
import inspect
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm import plugins
from lm.errors import ConfigError, nearest

log = logging.getLogger(__name__)
NAMED = 3  # faults that a message names
WORDS = ("type", "weight")  # fields of a section that are not the reward's own


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer that a model drew.

    record: the row of the file that the prompt comes from. ended: by a stop token, not by the
    budget. tokens: their number.
    """

    prompt: str
    text: str
    record: Mapping[str, Any]
    ended: bool = True
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Reward:
    """A function (answer, **options) -> number, with its weight in the sum."""

    name: str
    function: Callable[..., float]
    weight: float
    options: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Name and file."""
        file = inspect.getsourcefile(inspect.unwrap(self.function)) or "?"
        return f"reward {self.name!r} ({os.path.relpath(file)})"


def batched(many: Callable[..., Sequence[float]]) -> Callable[..., float]:
    """Make a reward of a function (answers, **options) -> numbers, called once for all answers."""

    @functools.wraps(many)
    def one(answer, **options):
        return many([answer], **options)[0]

    vars(one)["many"] = many
    return one


@dataclasses.dataclass(frozen=True)
class Scores:
    """Rewards of answers, float64 [N], NaN where a function failed; by name, unweighted."""

    total: np.ndarray
    each: Mapping[str, np.ndarray]
    faults: tuple[str, ...]


def of(sections: Mapping[str, Any], known: Mapping[str, Callable]) -> list[Reward]:
    """The rewards of `task.rewards`: {NAME: {"type": ..., "weight": 1.0, OPTION: ...}}.

    type: a name in `known`, or module:function of a user's; NAME if it is left out. Raises
    ConfigError, naming the field.
    """
    if not sections:
        raise ConfigError(
            "task.rewards names no reward: expected {NAME: {...}} with one of "
            f"{', '.join(known)}, or 'type': 'module:function'"
        )
    return [_one(name, section, known) for name, section in sections.items()]


def _one(name: str, section: Any, known: Mapping[str, Callable]) -> Reward:
    where = f"task.rewards.{name}"
    if not hasattr(section, "items"):
        raise ConfigError(f"{where}={section!r}: expected fields, such as {{'weight': 1.0}}")
    fields = dict(section.items())
    function = _function(f"{where}.type", fields.get("type", name), known)
    weight = fields.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ConfigError(f"{where}.weight={weight!r}: expected a finite number")
    options = {key: value for key, value in fields.items() if key not in WORDS}
    parameters = list(inspect.signature(function).parameters.values())
    taken = [p.name for p in parameters[1:] if p.kind != p.VAR_KEYWORD]
    for key in () if any(p.kind == p.VAR_KEYWORD for p in parameters) else options:
        if key not in taken:
            raise ConfigError(
                f"{where}.{key}: the reward has no such option{nearest(key, taken)}; it has "
                f"{', '.join(taken) or 'none'}"
            )
    for p in parameters[1:]:
        if p.default is p.empty and p.kind == p.KEYWORD_ONLY and p.name not in options:
            raise ConfigError(f"{where}.{p.name} is not set, and the reward needs it")
    return Reward(name, function, float(weight), options)


def _function(field: str, name: Any, known: Mapping[str, Callable]) -> Callable:
    if not isinstance(name, str) or ":" not in name:
        if name not in known:
            raise ConfigError(
                f"{field}={name!r} is unknown{nearest(str(name), known)}; one of "
                f"{', '.join(known)}, or module:function of your own"
            )
        return known[name]
    found = plugins.attribute(field, name, "function")
    if not inspect.isfunction(found):
        raise ConfigError(f"{field}={name!r} is {found!r}: expected a function (answer) -> number")
    return found


def score(rewards: Sequence[Reward], answers: Sequence[Answer], most_bad: float = 0.0) -> Scores:
    """Weighted sum of the rewards of each answer.

    most_bad: share of answers for which a function may raise or return what is no finite number;
    a warning counts them and names the function's file. Raises ConfigError beyond it.
    """
    each = {one.name: np.full(len(answers), np.nan) for one in rewards}
    faults = []
    for one in rewards:
        for i, (value, fault) in enumerate(_of_all(one, answers)):
            each[one.name][i] = value
            if fault:
                faults.append(fault)
    total = np.sum([one.weight * each[one.name] for one in rewards], axis=0)
    bad = int(np.isnan(total).sum())
    said = f"{bad:,} of {len(answers):,} answers have no reward"
    named = "; ".join(faults[:NAMED])
    if bad > most_bad * len(answers):
        raise ConfigError(f"{said}, more than task.max_bad_rewards={most_bad:g} allows: {named}")
    if bad:
        log.warning("%s and are left out: %s", said, named)
    return Scores(total, each, tuple(faults))


def check_constant(rewards: Sequence[Reward], total: np.ndarray, before: int, most: int) -> int:
    """Number of rollouts in a row in which all rewards are equal, with this one.

    total: rewards of this rollout, NaN for answers without one. before: such rollouts right before
    it. Raises ConfigError, naming the functions' files, at `most` (`task.max_constant`; 0 = never).
    """
    given = total[~np.isnan(total)]
    if given.size and np.ptp(given) > 0:
        return 0
    if most and before + 1 >= most:
        where = ", ".join(one.where for one in rewards)
        raise ConfigError(
            f"{where}: all {total.size:,} answers of {before + 1} rollouts in a row had the reward "
            f"{total.flat[0]:g}, so nothing is learned (task.max_constant={most}): expected a "
            "reward that tells answers apart; begin with an easier one, or a model that is "
            "rewarded sometimes"
        )
    return before + 1


def _scored(one: Reward, answer: Answer) -> tuple[float, str]:
    """(reward, "") or (NaN, what is wrong)."""
    try:
        value = one.function(answer, **one.options)
    except ConfigError:  # an option that the function refuses
        raise
    except Exception as error:  # a user's function may raise anything
        return math.nan, f"{_raised(one, error)} on {answer.text[:40]!r}"
    return _number(one, value, answer)


def _of_all(one: Reward, answers: Sequence[Answer]) -> list[tuple[float, str]]:
    """`_scored` of every answer."""
    many = getattr(one.function, "many", None)
    if many is None:
        return [_scored(one, answer) for answer in answers]
    try:
        values = list(many(answers, **one.options))
    except ConfigError:
        raise
    except Exception as error:
        return [(math.nan, _raised(one, error))] * len(answers)
    if len(values) != len(answers):
        fault = f"{one.where} returned {len(values):,} numbers for {len(answers):,} answers"
        return [(math.nan, fault)] * len(answers)
    return [_number(one, value, answer) for value, answer in zip(values, answers, strict=True)]


def _raised(one: Reward, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0]
    return f"{one.where} raised {type(error).__name__}: {reason}"


def _number(one: Reward, value: Any, answer: Answer) -> tuple[float, str]:
    """(value, "") if it is one finite number, or (NaN, what is wrong)."""
    shown = repr(answer.text[:40])
    found = np.asarray(value)
    if found.shape != () or found.dtype.kind not in "biuf":
        what = f"shape {found.shape}" if found.shape else type(value).__name__
        return math.nan, f"{one.where} returned {what} on {shown}, expected one number"
    if not math.isfinite(found):
        return math.nan, f"{one.where} returned {value} on {shown}, expected a finite number"
    return float(found), ""
