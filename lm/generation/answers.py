"""generate and stream: from prompts to new tokens."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from lm.generation.beams import Beams, search
from lm.generation.decode import advance, start
from lm.generation.requests import GenerationError, bucket, padded, requests
from lm.generation.samplers import Greedy
from lm.models import LanguageModel, separate
from lm.phases import phase

CHECK_EVERY = 8  # steps between checks for finished answers on the host


@phase("generating; what is new is compiled first")
def generate(
    model: LanguageModel,
    params: dict,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    sampler=Greedy(),
    *,
    decoder_prompts: Sequence[Sequence[int]] | None = None,
    stop_tokens: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
    finished: Callable[[int, list[int]], bool] | None = None,
) -> list[list[int]]:
    """Continue every prompt by at most `max_new_tokens` tokens.

    * prompts: token lists of any lengths; each gets the answer that it would get alone. In an
      encoder-decoder the encoder reads them, and the answers continue `decoder_prompts` (None: the
      model's `decoder_start_token_id`).
    * max_new_tokens: one number, or one per prompt.
    * sampler: Greedy, Sample, Beams or any hashable callable (logits float32 [B, V], key) -> int32
      [B].
    * stop_tokens: ids that end an answer and are not returned (None: the model's `eos_token_ids`).
    * seed: sampling is deterministic in the seed and the order of the prompts.
    * batch_size: number of prompts (with Beams: beams) of similar length that run together.
    * on_batch: called with the number of prompts of each batch that finishes.
    * finished: called every few steps for every unfinished answer, with the prompt's number and the
      tokens so far; True ends the answer.

    Returns the new tokens of each prompt. Raises GenerationError for a prompt that cannot be
    served, before anything compiles.
    """
    asked = requests(model.config, prompts, max_new_tokens, decoder_prompts)
    if isinstance(sampler, Beams) and finished is not None:
        raise GenerationError(
            "finished cannot end a beam search, whose answer is only known at its end: "
            "leave it out, or use a sampler"
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
    """Run `advance` to the end, checking every few steps for finished answers."""
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
    model: LanguageModel,
    params: dict,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampler=Greedy(),
    *,
    decoder_prompt: Sequence[int] | None = None,
    stop_tokens: Sequence[int] | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the tokens of `generate` for one prompt as they come; with Beams, all at the end."""
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
    """Ids that end an answer, int32 [K]; -1, which is no token, if there are none."""
    return np.asarray(
        sorted(set(model.config.eos_token_ids if stop_tokens is None else stop_tokens)) or [-1],
        np.int32,
    )


def _arrays(asked, rows: int) -> tuple[int, dict]:
    """Room for the new tokens, and the requests as arrays."""
    return bucket(max(request.budget for request in asked)), padded(asked, rows)
