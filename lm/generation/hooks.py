"""Hooks: a user's code between the model's logits and the choice of a token."""

import ast
import copy
import dataclasses
import inspect
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm import plugins
from lm.generation.requests import GenerationError, Request
from lm.models import ModelConfig
from lm.models.config import ConfigError
from lm.models.taps import TAPS

HELD_BACK = ("sources", "inputs")  # of what `find` returns: not for `mix`
PARAMS = "params"  # name of a hook's arrays among what `mix` gets


@dataclasses.dataclass(frozen=True)
class Slot:
    """What runs in one row of the batch: the request, its number, and the tokens it has so far."""

    number: int
    request: Request
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class Hook:
    """Changes the distribution of the next token. Derive a frozen dataclass, which is hashable.

    taps: names of `lm.models.taps.TAPS`, the hidden states that the hook sees.

    A pure hook has no `find`: its `mix` gets the taps, {name: [B, D]}, and runs in the compiled
    loop. Otherwise `find` runs on the host, and decoding goes token by token: choose, forward, taps
    out, find, mix.

    params: arrays of the hook, nested as it likes, such as the weights of a small network. `mix`
    gets them as `found["params"]`: they are arguments of the compiled program, so other values need
    no compilation. Within `mix`, `self.params` is None.
    """

    params: Any = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)

    taps = ()
    every = 1  # tokens of an answer from one `find` to the next
    find = None

    # def find(self, taps, slots) -> dict | None
    #     taps: {name: float array [N, D]}, slots: N Slots. Returns arrays [N, ...] for `mix`, equal
    #     in shape and dtype each time; None: nothing, logits stay as they are. Two names are not
    #     for `mix`: "sources", N sequences of any kind, end up in `Generated.sources`; "inputs",
    #     {batch field: [N, ...]}, replace the request's inputs from the next forward pass on.

    def mix(self, logits: jax.Array, found: dict[str, jax.Array]) -> jax.Array:
        """Map float32 [B, V] to float32 [B, V]. Rows that found nothing are left out after it.

        found: what `find` returned for each row last, or the taps in a pure hook; and `params`.
        """
        del found
        return logits


def named(text: str) -> Any:
    """Hook of "module:Class" or "module:Class,option=value,...". Raises ConfigError."""
    name, *options = text.split(",")
    kind = plugins.find("--hook", name, {}, Hook)
    given = {}
    for option in options:
        key, _, value = option.partition("=")
        try:
            given[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[key] = value
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--hook={text!r}: {error}") from error


def where(hook) -> str:
    """Name and file of a hook, for messages."""
    try:
        file = f" ({os.path.relpath(inspect.getfile(type(hook)))})"
    except (TypeError, OSError):
        file = ""
    return f"hook {type(hook).__name__}{file}"


def pure(hook) -> bool:
    return getattr(hook, "find", None) is None


def check(c: ModelConfig, hooks: Sequence) -> None:
    """Raise GenerationError for a hook that cannot be used with the model."""
    for hook in hooks:
        try:
            hash(hook)
        except TypeError as error:
            raise GenerationError(
                f"{where(hook)} cannot be hashed ({error}): make it a frozen dataclass of "
                "hashable fields"
            ) from error
        for tap in hook.taps:
            if tap not in TAPS:
                raise GenerationError(
                    f"{where(hook)}: taps names {tap!r}, expected {' or '.join(TAPS)}"
                )
            if tap == "ffn_input" and not c.d_ff:
                raise GenerationError(
                    f"{where(hook)}: taps names 'ffn_input', but the layers of this {c.family} "
                    "model have no feed-forward: use 'hidden', the final hidden states"
                )
        if not isinstance(hook.every, int) or hook.every < 1:
            raise GenerationError(f"{where(hook)}: every={hook.every!r}, expected at least 1")


def taps_of(hooks: Sequence) -> tuple[str, ...]:
    return tuple(sorted({tap for hook in hooks for tap in hook.taps}))


def parts(hook) -> tuple[Any, Any]:
    """(hook without its params, params as arrays): the fixed part of a program and an argument.

    With an active mesh, the arrays are put on all of its devices. Raises GenerationError.
    """
    if getattr(hook, PARAMS, None) is None:
        return hook, None
    bare = copy.copy(hook)
    object.__setattr__(bare, PARAMS, None)  # the hook may be frozen

    def array(path, value):
        if np.asarray(value).dtype.kind not in "biufV":  # V: bfloat16
            raise GenerationError(
                f"{where(hook)}: params{jax.tree_util.keystr(path)} is {type(value).__name__}, "
                "expected arrays of numbers"
            )
        return value if isinstance(value, jax.Array) else jnp.asarray(value)

    arrays = jax.tree_util.tree_map_with_path(array, hook.params)
    mesh = jax.sharding.get_mesh()
    everywhere = None if mesh.empty else NamedSharding(mesh, PartitionSpec())
    return bare, arrays if everywhere is None else jax.device_put(arrays, everywhere)


def mixed(hook, logits: jax.Array, found: dict[str, jax.Array], params: Any = None) -> jax.Array:
    """Call `mix` and check what it returns. Raises GenerationError that names the hook's file."""
    if params is not None:
        found = {**found, PARAMS: params}
    try:
        result = hook.mix(logits, found)
    except Exception as error:  # a user's file may raise anything
        raise GenerationError(f"{where(hook)}: mix raised {_said(error)}") from error
    shape, dtype = jnp.shape(result), jnp.result_type(result)
    if shape != logits.shape or dtype != logits.dtype:
        raise GenerationError(
            f"{where(hook)}: mix returned {dtype}{list(shape)}, expected "
            f"{logits.dtype}{list(logits.shape)}, as the logits it was given"
        )
    return result


@dataclasses.dataclass
class Found:
    """What a host hook found last for every row: arrays [B, ...], and which rows have any."""

    hook: Any
    rows: int
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.has = np.zeros(self.rows, bool)
        self.sources: list[tuple] = [()] * self.rows

    def clear(self, row: int) -> None:
        self.has[row], self.sources[row] = False, ()

    def look(
        self, taps: dict[str, np.ndarray], slots: dict[int, Slot], known: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Call `find` for the slots, by row, whose turn it is.

        Returns the new inputs [B, ...], and their rows, bool [B]; {} without new inputs. known: an
        example [...] of every input of the requests.
        """
        due = [row for row, slot in slots.items() if len(slot.tokens) % self.hook.every == 0]
        if not due:
            return {}
        seen = {name: taps[name][due] for name in self.hook.taps}
        try:
            result = self.hook.find(seen, [slots[row] for row in due])
        except Exception as error:  # a user's file may raise anything
            raise GenerationError(f"{where(self.hook)}: find raised {_said(error)}") from error
        for row in due:
            self.clear(row)
        if result is None:
            return {}
        if not isinstance(result, dict):
            raise self._wrong("its result", type(result).__name__, "a dict of arrays, or None")
        for row, sources in zip(due, result.get("sources", ()), strict=False):
            self.sources[row] = tuple(sources)
        given = {name: x for name, x in result.items() if name not in HELD_BACK}
        if PARAMS in given:
            raise self._wrong(repr(PARAMS), "a value", "another name: it is that of the hook's own")
        for name, value in given.items():
            value = self._checked(name, value, len(due))
            if name not in self.arrays:
                self.arrays[name] = np.zeros((self.rows, *value.shape[1:]), value.dtype)
            old = self.arrays[name]
            if old.shape[1:] != value.shape[1:] or old.dtype != value.dtype:
                raise self._wrong(
                    repr(name),
                    f"{value.dtype}{list(value.shape)}",
                    f"{old.dtype}{[len(due), *old.shape[1:]]}, as the first time",
                )
            self.arrays[name] = old = old.copy()  # the device may still read the old one
            old[due] = value
        self.has = self.has.copy()
        self.has[due] = bool(given)
        inputs = {}
        for name, value in result.get("inputs", {}).items():
            value = self._checked(name, value, len(due))
            shape = known[name].shape if name in known else None
            if value.shape[1:] != shape:
                raise self._wrong(
                    f"inputs[{name!r}]",
                    f"{value.dtype}{list(value.shape)}",
                    f"the shape {[len(due), *shape]} of the requests' inputs"
                    if shape is not None
                    else f"one of the requests' inputs ({', '.join(known) or 'they have none'})",
                )
            inputs[name] = np.zeros((self.rows, *shape), value.dtype)
            inputs[name][due] = value
        return inputs | ({"rows": np.isin(np.arange(self.rows), due)} if inputs else {})

    def _checked(self, name: str, value, due: int) -> np.ndarray:
        value = np.asarray(value)
        if value.ndim < 1 or len(value) != due or value.dtype.kind not in "biuf":
            raise self._wrong(
                repr(name), f"{value.dtype}{list(value.shape)}", f"numbers of shape [{due}, ...]"
            )
        return value

    def _wrong(self, name: str, got: str, expected: str) -> GenerationError:
        return GenerationError(
            f"{where(self.hook)}: find returned {got} for {name}, expected {expected}"
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
