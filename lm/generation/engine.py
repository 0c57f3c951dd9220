"""The generation engine: requests share a batch of slots, and a free slot takes the next request.

Orca (Yu et al. 2022) calls this iteration-level scheduling, vLLM continuous batching.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lm.generation.requests import Generated, GenerationError, Request
from lm.generation.running import Finished, Run, Setup
from lm.generation.samplers import Greedy
from lm.models import LanguageModel

CHECK_EVERY = 8  # tokens between checks for finished answers on the host
ALL = 2**30  # tokens, more than any budget


class Engine:
    """Generates answers to requests in `rows` slots, each with a cache of `length` tokens.

    length: for a prompt and its new tokens. encoder_length: for the prompt of an encoder-decoder.
    Both should be values of `bucket`, to which prompts are padded. sampler, stop_tokens and seed
    are those of `lm.generate`.

    What a request gets depends on its prompt, the seed and its key alone: not on its slot, on the
    other requests or on their order. Rows and caches are sharded over the data axes of the active
    mesh (`lm.distributed`), which must divide `rows`. Prompts are read `rows` at a time, or one for
    each of these devices. After every padded length was read both ways, nothing compiles.

    patience: tokens after which a request leaves its slot to one that waits, and waits itself; its
    tokens are read again when it goes on. 0 = never; not with a hook that has `find`. With answers
    of unknown lengths it keeps the longest from running alone at the end.

    prompt_length: prompts are padded to at least so many tokens, so that fewer shapes compile.
    separate: split stacked layers first (`lm.for_decoding`), which takes one copy of them.

    steps: forward passes over all slots so far. tokens: tokens drawn. reads: prompts read, with the
    empty rows beside them.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        length: int,
        rows: int = 16,
        encoder_length: int = 0,
        sampler: Any = Greedy(),
        stop_tokens: Sequence[int] | None = None,
        seed: int = 0,
        patience: int = 0,
        prompt_length: int = 0,
        separate: bool = True,
    ):
        share = at_once()
        if rows < 1 or rows % share:
            raise GenerationError(
                f"rows={rows}: expected a multiple of {share}, the devices of the mesh that share "
                "the rows"
            )
        if patience < 0:
            raise GenerationError(f"patience={patience}: expected 0 or more tokens")
        stop = stop_ids(model, stop_tokens)
        encoder_length = encoder_length if model.config.encoder_layers else 0
        self.setup = Setup(
            model,
            rows,
            length,
            encoder_length,
            sampler,
            stop,
            seed,
            share,
            patience,
            prompt_length,
            separate,
        )
        self.steps = self.tokens = self.reads = 0

    def run(
        self,
        params: dict,
        requests: Sequence[Request],
        hooks: Sequence = (),
        finished: Finished | None = None,
    ) -> Iterator[Generated]:
        """Yield what each request gets, as it ends; the largest budgets start first.

        hooks: see `lm.generation.hooks.Hook`; they are applied in their order. finished: called
        every few tokens with the number and tokens of a running request; True ends it. A request
        that does not fit is yielded with finish "refused", and the others are served. Raises
        GenerationError for a hook that cannot be used, raises, or returns what it must not.
        """
        run = Run(self.setup, params, requests, tuple(hooks))
        yield from run.refused
        while run.active:
            done = self._next(run, ALL if finished is None else CHECK_EVERY, finished)
            yield from done

    def stream(self, params: dict, request: Request, hooks: Sequence = ()) -> Iterator[int]:
        """Yield the tokens of one request as they come, without the stop token.

        Raises GenerationError as `run` does, and for a request that does not fit.
        """
        run = Run(self.setup, params, [request], tuple(hooks))
        for refused in run.refused:
            raise GenerationError(refused.error)
        shown = 0
        while run.active:
            done = self._next(run, 1)
            tokens = done[0].answer if done else run.so_far()[0]
            yield from tokens[shown:]
            shown = len(tokens)

    def _next(self, run: Run, tokens: int, finished: Finished | None = None) -> list[Generated]:
        before = run.steps, run.reads
        run.fill()
        run.advance(tokens)
        if finished is not None:
            run.watch(finished)
        done = run.harvest()
        self.steps += run.steps - before[0]
        self.reads += run.reads - before[1]
        self.tokens += sum(len(one.tokens) for one in done)
        return done


def stop_ids(model: LanguageModel, stop_tokens: Sequence[int] | None) -> np.ndarray:
    """Ids that end an answer, int32 [K]; -1, which is no token, if there are none."""
    return np.asarray(
        sorted(set(model.config.eos_token_ids if stop_tokens is None else stop_tokens)) or [-1],
        np.int32,
    )


def at_once() -> int:
    """Number of devices of the active mesh that share the rows of a batch; 1 without a mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    axes = dict(nn.get_logical_axis_rules()).get("batch") or ()
    return math.prod(sizes.get(axis, 1) for axis in ((axes,) if isinstance(axes, str) else axes))
