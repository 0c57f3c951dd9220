"""One run of the engine: the queue, who holds which slots, and the arrays on the devices."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.generation import hooks as of_hooks
from lm.generation import slots
from lm.generation.requests import Generated, GenerationError, Request, bucket, check, stacked
from lm.models import LanguageModel, ModelConfig, for_decoding

NEVER = 2**30  # tokens, more than any budget
NEIGHBOURS = ("neighbours", "neighbour_segments")  # inputs that a request can have
# (number of a request, its tokens so far) -> whether its answer is finished
Finished = Callable[[int, list[int]], bool]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What an engine was made with.

    stop: ids that end an answer, int32 [K]. share: prompts are read in multiples of it. patience:
    tokens after which a request leaves its slots to those that wait; 0 = never.
    """

    model: LanguageModel
    rows: int
    length: int
    encoder_length: int
    sampler: Any
    stop: np.ndarray
    seed: int
    share: int
    patience: int = 0
    prompt_length: int = 0
    separate: bool = True


class Got(NamedTuple):
    """What a request got before it left its slots."""

    tokens: list[int]
    log_probs: np.ndarray
    behaviour: np.ndarray


NOTHING = Got([], np.zeros(0, np.float32), np.zeros(0, np.float32))


class Waiting(NamedTuple):
    """A request that waits."""

    number: int
    request: Request
    got: Got

    @property
    def rest(self) -> Request:
        """What is still to be done: the tokens that it got are part of the prompt."""
        if not self.got.tokens:
            return self.request
        tokens = [*self.request.tokens, *self.got.tokens]
        budget = self.request.budget - len(self.got.tokens)
        return dataclasses.replace(self.request, tokens=tokens, budget=budget)


@dataclasses.dataclass
class Held:
    """A request that runs: its slots, what it got before, the sources of its tokens so far."""

    number: int
    request: Request
    rows: list[int]
    got: Got
    sources: list[tuple]


class Run:
    """Serve requests: `fill` free slots, `advance`, `harvest` what ended; while `active`.

    A request may leave its slots after `Setup.patience` tokens, and waits again.

    refused: what requests that do not fit get. steps: forward passes of the batch. reads: prompts
    that were read, with the empty rows beside them.
    """

    def __init__(self, setup: Setup, params: dict, requests: Sequence[Request], hooks: tuple):
        self.setup = setup
        of_hooks.check(setup.model.config, hooks)
        self.model, self.params = setup.model, params
        if setup.separate:
            self.model, self.params = for_decoding(setup.model, params, setup.rows)
        refusals = [refusal(setup, i, request) for i, request in enumerate(requests)]
        self.refused = [_refused(i, why) for i, why in enumerate(refusals) if why]
        served = [request for request, why in zip(requests, refusals, strict=True) if not why]
        numbers = (i for i, why in enumerate(refusals) if not why)
        waiting = [Waiting(i, request, NOTHING) for i, request in zip(numbers, served, strict=True)]
        # Started last, the largest budgets would run alone at the end.
        waiting.sort(key=lambda one: (-one.request.budget, one.request.length))
        self.waiting = collections.deque(waiting)
        self.held: list[Held] = []
        self.free = list(range(setup.rows))
        self.entered = self.steps = self.reads = 0
        self.running, self.halt = np.zeros(setup.rows, bool), np.zeros(setup.rows, bool)
        self.count = self.finish = np.zeros(setup.rows, np.int32)
        self.tokens = np.zeros((setup.rows, setup.length), np.int32)
        self.key = jax.random.key(setup.seed)
        if setup.patience and not all(map(of_hooks.pure, hooks)):
            raise GenerationError(
                f"patience={setup.patience}: a request that leaves its slot would lose what a "
                "hook's `find` found for it; use patience=0 with such a hook"
            )
        self.found = [of_hooks.Found(hook, setup.rows) for hook in hooks if not of_hooks.pure(hook)]
        bare, self.hook_params = (
            zip(*map(of_hooks.parts, hooks), strict=True) if hooks else ((), ())
        )
        self.plan = slots.Plan(
            self.model,
            setup.sampler,
            bare,
            of_hooks.taps_of(hooks),
            any(request.members for request in served),
        )
        self.inputs = _inputs(setup.model.config, served)
        self.apart = any(len(request.encoder_segments) for request in served)
        if served:
            self.state = slots.empty(
                self.plan,
                setup.rows,
                setup.length,
                setup.encoder_length,
                self.inputs,
            )

    @property
    def active(self) -> bool:
        return bool(self.waiting or self.held)

    def fill(self) -> None:
        """Give free slots to the requests that wait, in their order."""
        entering = []
        while self.waiting and len(self.waiting[0].request.rows) <= len(self.free):
            one = self.waiting.popleft()
            rows = [self.free.pop(0) for _ in one.request.rows]
            self.held.append(Held(one.number, one.request, rows, one.got, []))
            self.running[rows], self.halt[rows], self.count[rows] = True, False, 0
            entering += [(one, i, row, rows[0]) for i, row in enumerate(rows)]
        for found in self.found:
            for _, _, row, _ in entering:
                found.clear(row)
        setup = self.setup
        size = setup.rows if len(entering) > setup.rows // 2 else setup.share
        for first in range(0, len(entering), size):
            self._insert(entering[first : first + size], size)

    def _insert(self, entering: list[tuple[Waiting, int, int, int]], size: int) -> None:
        """Read the prompts of at most `size` slots: (request, member, slot, first slot)."""
        setup, c, surplus = self.setup, self.model.config, size - len(entering)
        given = [one.rest for one, *_ in entering]
        prompts = [request.rows[i] for request, (_, i, *_) in zip(given, entering, strict=True)]
        prompts += prompts[:1] * surplus
        tokens, real = stacked([tokens for tokens, _ in prompts], True, setup.prompt_length)
        if c.encoder_layers and max(len(tokens) for tokens, _ in prompts) == 1:
            tokens, real = tokens[:, -1:], real[:, -1:]  # only the start token: no padding needed
        # any ids above 0 do that differ from those before them in the same slot
        ids = np.arange(self.entered + 1, self.entered + 1 + size, dtype=np.int32)
        self.entered = (self.entered + size) % 2**30
        self.reads += size

        def column(values, dtype: type = np.int32) -> np.ndarray:
            values = np.asarray([*values], dtype)
            return np.concatenate([values, values[:1].repeat(surplus)])

        arrays = {
            "tokens": tokens,
            "segments": real * ids[:, None],
            "prompt": real.sum(axis=1, dtype=np.int32),
            "budget": column(request.budget for request in given),
            "before": column(len(one.got.tokens) for one, *_ in entering),
            "leave": column(map(self._leave, given)),
            "number": column(
                one.number if one.request.key is None else one.request.key for one, *_ in entering
            ),
            "segment": ids,
            "group": column(first for *_, first in entering),
            "log_weight": column(
                (
                    one.request.log_weights[i] if one.request.members else 0.0
                    for one, i, *_ in entering
                ),
                np.float32,
            ),
        }
        if c.encoder_layers:
            read, of = stacked([encoder for _, encoder in prompts], False, setup.prompt_length)
            arrays |= {"encoder_tokens": read, "encoder_segments": of * ids[:, None]}
        given += given[:1] * surplus
        if self.apart:
            arrays["encoder_owners"] = arrays["encoder_segments"]
            arrays["encoder_segments"] = passages = np.zeros_like(of)
            for row, request in enumerate(given):
                numbers = request.encoder_segments
                passages[row, : len(numbers)] = numbers
                passages[row] = passages[row] if len(numbers) else of[row]
        arrays["inputs"] = {
            name: np.stack([_padded(request.inputs.get(name), x) for request in given])
            for name, x in self.inputs.items()
        }
        if self.inputs:
            of = arrays["inputs"]["neighbour_segments"]
            arrays["inputs"]["neighbour_segments"] = (of > 0) * ids[:, None, None]
        rows = np.asarray([row for *_, row, _ in entering] + [self.setup.rows] * surplus, np.int32)
        self.state = slots.insert(self.plan, self.params, self.state, arrays, rows)

    def _leave(self, request: Request) -> int:
        """Tokens after which a request leaves its slot if others wait and it can be read again."""
        patience, setup = self.setup.patience, self.setup
        longest = max(len(tokens) for tokens, _ in request.rows) + patience
        return patience if patience and bucket(longest) <= setup.length else NEVER

    def advance(self, tokens: int) -> None:
        """Decode by at most `tokens` tokens a row, until a waiting request finds its slots free.

        With a hook that has `find`, decode by one token.
        """
        common = self.setup.stop, self.key, self.halt, self.hook_params
        if self.found:
            active = [held for held in self.held if self.running[held.rows[0]]]
            found, inputs = self._look(active)
            self.state = slots.step(self.plan, self.params, self.state, *common, found, inputs)
            for held in active:
                sources = [found.sources[held.rows[0]] for found in self.found]
                held.sources.append(tuple(source for each in sources for source in each))
        else:
            need = len(self.waiting[0].request.rows) if self.waiting else self.setup.rows + 1
            self.state = slots.advance(
                self.plan,
                self.params,
                self.state,
                *common,
                bool(self.waiting),
                np.int32(need),
                np.int32(self.steps + tokens),
            )
        # in one read: each waits for the device
        self.running, self.count, self.finish, steps, self.tokens = jax.device_get(
            [self.state[name] for name in ("running", "count", "finish", "steps", "tokens")]
        )
        self.steps = int(steps)
        self.running, self.count = self.running.copy(), self.count.copy()  # device_get's: frozen
        self.halt = np.zeros(self.setup.rows, bool)

    def _look(self, active: list[Held]) -> tuple[list, dict]:
        """Ask the host hooks: what they found for every row, and the inputs that change."""
        so_far = self.so_far()
        taps = {name: np.asarray(x) for name, x in jax.device_get(self.state["taps"]).items()}
        asked = {
            row: of_hooks.Slot(held.number, held.request, so_far[held.number])
            for held in active
            for row in held.rows
        }
        inputs: dict[str, np.ndarray] = {}
        for found in self.found:
            inputs |= found.look(taps, asked, self.inputs)
        return [(found.arrays, found.has) for found in self.found], inputs

    def so_far(self) -> dict[int, list[int]]:
        """The tokens of every request that runs, by its number."""
        return {
            held.number: held.got.tokens + self.tokens[row, : self.count[row]].tolist()
            for held in self.held
            for row in held.rows[:1]
        }

    def watch(self, finished: Finished) -> None:
        """End the requests whose answer is finished."""
        so_far = self.so_far()
        for held in self.held:
            if self.running[held.rows[0]] and finished(held.number, so_far[held.number]):
                self.running[held.rows], self.halt[held.rows] = False, True

    def harvest(self) -> list[Generated]:
        """What the requests got that ended; their slots are free."""
        ended = [held for held in self.held if not self.running[held.rows[0]]]
        if not ended:
            return []
        log_probs, behaviour = jax.device_get(
            [self.state[name] for name in ("log_probs", "behaviour")]
        )
        done = []
        for held in ended:
            row, at = held.rows[0], slice(0, int(self.count[held.rows[0]]))
            got = Got(
                held.got.tokens + self.tokens[row, at].tolist(),
                np.concatenate([held.got.log_probs, log_probs[row, at]]),
                np.concatenate([held.got.behaviour, behaviour[row, at]]),
            )
            self.held.remove(held)
            self.free += held.rows
            if not self.halt[row] and not self.finish[row]:
                self.waiting.append(Waiting(held.number, held.request, got))
                continue
            finish = "callback" if self.halt[row] else slots.FINISH[self.finish[row]]
            done.append(Generated(held.number, *got, finish, tuple(held.sources)))
        self.free.sort()
        return done


def refusal(setup: Setup, number: int, request: Request) -> str:
    """Why a request cannot be served; "" if it can."""
    try:
        check(setup.model.config, number, request)
    except GenerationError as error:
        return str(error)
    rows = request.rows
    longest = max(len(tokens) for tokens, _ in rows)
    encoder = max(len(tokens) for _, tokens in rows)
    if longest + request.budget > setup.length or bucket(longest) > setup.length:
        return (
            f"request {number} has {longest} tokens and {request.budget} more are asked for, but "
            f"the engine's cache has {setup.length} a row: shorten it, lower the budget, or make "
            "an engine with a larger length"
        )
    if encoder and bucket(encoder) > setup.encoder_length:
        return (
            f"request {number} has {encoder} tokens for the encoder, but the engine's cache has "
            f"{setup.encoder_length} a row: shorten it, or make an engine with a larger "
            "encoder_length"
        )
    if len(rows) > setup.rows:
        return (
            f"request {number} has {len(rows)} members, but the engine has {setup.rows} rows: "
            "give it fewer members, or the engine more rows"
        )
    return ""


def _refused(number: int, why: str) -> Generated:
    nothing = np.zeros(0, np.float32)
    return Generated(number, [], nothing, nothing, "refused", error=why)


def _inputs(c: ModelConfig, served: Sequence[Request]) -> dict[str, np.ndarray]:
    """Example of every input, [...] as large as the largest. Raises GenerationError."""
    shapes = [
        {name: np.shape(x) for name, x in request.inputs.items()}
        for request in served
        if request.inputs
    ]
    if not shapes:
        return {}
    for shape in shapes:
        vectors, of = (shape.get(name, ()) for name in NEIGHBOURS)
        if (
            len(shape) != 2
            or len(vectors) != 3
            or vectors[:2] != of
            or vectors[2] != shapes[0][NEIGHBOURS[0]][2]
        ):
            raise GenerationError(
                f"inputs of a request have the shapes {shape}: expected neighbours [C, S, N] and "
                "neighbour_segments [C, S], with one N in all requests"
            )
    if not c.neighbour_layers:
        raise GenerationError(
            f"this {c.family} model attends to no neighbours: leave out the requests' inputs"
        )
    largest = tuple(max(sizes) for sizes in zip(*(s[NEIGHBOURS[0]] for s in shapes), strict=True))
    vectors, of = NEIGHBOURS
    return {vectors: np.zeros(largest, c.dtype), of: np.zeros(largest[:2], np.int32)}


def _padded(x, like: np.ndarray) -> np.ndarray:
    """An input as large as `like`, with zeros (segment 0: nothing) after it; None: zeros alone."""
    if x is None:
        return np.zeros_like(like)
    x = np.asarray(x, like.dtype)
    return np.pad(x, [(0, most - size) for most, size in zip(like.shape, x.shape, strict=True)])
