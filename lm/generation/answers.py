"""generate and stream: prompts in, new tokens out."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from lm.generation.beams import Beams, search
from lm.generation.decode import advance, start
from lm.generation.requests import GenerationError, bucket, padded, requests
from lm.generation.samplers import Greedy
from lm.models import LanguageModel, separate
from lm.phases import phase

CHECK_EVERY = 8  # steps between two looks of the host at unfinished answers


@phase("generating; what is new is compiled first")
def generate(
    model: LanguageModel, params: dict, prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], sampler=Greedy(), *,
    decoder_prompts: Sequence[Sequence[int]] | None = None, stop_tokens: Sequence[int] | None = None, seed: int = 0,
    batch_size: int = 16, on_batch: Callable[[int], None] | None = None, finished: Callable[[int, list[int]], bool] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Continues every prompt by at most `max_new_tokens` tokens: one number, or one a prompt.

    prompts: token lists of any lengths; each gets what it would get alone. An encoder-decoder's encoder reads them, and its answers
    continue `decoder_prompts` (None: the model's `decoder_start_token_id` each). sampler: Greedy, Sample, Beams or any hashable
    callable (logits float32 [B, V], key) -> int32 [B]. stop_tokens: ids that end an answer and are not returned (None: the model's
    `eos_token_ids`). At most `batch_size` prompts (with Beams: beams) of similar length run together, and `on_batch(number)` is
    called as batches finish. finished: asked every few steps about every unfinished answer (number of the prompt, tokens so far);
    an answer it is true of ends there. Sampling is deterministic in `seed` and the order of the prompts.
    Returns the new tokens of each prompt. Raises GenerationError before anything compiles when a prompt cannot be served.
    """
    asked = requests(model.config, prompts, max_new_tokens, decoder_prompts)
    if isinstance(sampler, Beams) and finished is not None:
        raise GenerationError(
            "finished cannot end a beam search, whose answer is only known at its end: leave it out, or use a sampler"
        )
    stop = _stop(model, stop_tokens)
    model, params = separate(model, params)
    order = sorted(range(len(asked)), key=lambda i: asked[i].length)
    rows = max(
        1, min(batch_size // sampler.n if isinstance(sampler, Beams) else batch_size, len(asked))
    )
    answers: list[list[int]] = [[] for _ in asked]
    for first in range(0, len(order), rows):
        members = order[first : first + rows]
        room, arrays = _arrays([asked[i] for i in members], rows)
        if isinstance(sampler, Beams):
            tokens, lengths = jax.device_get(search(model, sampler, room, params, arrays, stop))
        else:
            state = start(model, sampler, room, params, arrays, stop, jax.random.key(seed + first))
            if finished is None:
                state = advance(model, sampler, params, state, stop, room)
            else:
                state = _watched(model, sampler, params, state, stop, members, finished)
            tokens, lengths = jax.device_get((state["tokens"], state["lengths"]))
        for row, i in enumerate(members):
            answers[i] = tokens[row, : lengths[row]].tolist()
        if on_batch is not None:
            on_batch(len(members))
    return answers


def _watched(model, sampler, params, state, stop, members, finished) -> dict:
    """`advance` to the end, looking every few steps for answers that are finished."""
    while True:
        tokens, lengths, done, count = jax.device_get(
            [state[name] for name in ("tokens", "lengths", "done", "count")]
        )
        done = done.copy()
        for row, i in enumerate(members):
            done[row] = done[row] or finished(i, tokens[row, : lengths[row]].tolist())
        if done.all():
            return state
        state = advance(
            model, sampler, params, state | {"done": done}, stop, int(count) + CHECK_EVERY
        )


def stream(
    model: LanguageModel, params: dict, prompt: Sequence[int], max_new_tokens: int, sampler=Greedy(), *,
    decoder_prompt: Sequence[int] | None = None, stop_tokens: Sequence[int] | None = None, seed: int = 0,
) -> Iterator[int]:  # fmt: skip
    """Yields the tokens that `generate` would return for one prompt, each as soon as it is there: with Beams, all at the end."""
    asked = requests(
        model.config, [prompt], max_new_tokens, None if decoder_prompt is None else [decoder_prompt]
    )
    stop = _stop(model, stop_tokens)
    model, params = separate(model, params)
    room, arrays = _arrays(asked, 1)
    if isinstance(sampler, Beams):
        tokens, lengths = jax.device_get(search(model, sampler, room, params, arrays, stop))
        yield from tokens[0, : lengths[0]].tolist()
        return
    state = start(model, sampler, room, params, arrays, stop, jax.random.key(seed))
    for count in range(1, max_new_tokens + 1):
        if count > 1:
            state = advance(model, sampler, params, state, stop, count)
        if state["lengths"][0] < count:
            return
        yield int(state["last"][0])


def _stop(model, stop_tokens) -> np.ndarray:
    """Int32 [K]: ids that end an answer; -1, which no token is, when there are none."""
    return np.asarray(
        sorted(set(model.config.eos_token_ids if stop_tokens is None else stop_tokens)) or [-1],
        np.int32,
    )


def _arrays(asked, rows: int) -> tuple[int, dict]:
    """Room for their new tokens, and the requests as arrays."""
    return bucket(max(request.budget for request in asked)), padded(asked, rows)
