"""generate and stream: from prompts to new tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from lm.generation import hooks as of_hooks
from lm.generation.beams import Beams, search
from lm.generation.engine import Engine, at_once, stop_ids
from lm.generation.requests import GenerationError, Request, bucket, padded, requests
from lm.generation.samplers import Greedy
from lm.models import LanguageModel, for_decoding
from lm.phases import phase


@phase("generating; what is new is compiled first")
def generate(
    model: LanguageModel,
    params: dict,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    sampler: Any = Greedy(),
    *,
    decoder_prompts: Sequence[Sequence[int]] | None = None,
    stop_tokens: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
    finished: Callable[[int, list[int]], bool] | None = None,
    hooks: Sequence = (),
) -> list[list[int]]:
    """Continue every prompt by at most `max_new_tokens` tokens.

    * prompts: token lists of any lengths; each gets the answer that it would get alone. In an
      encoder-decoder the encoder reads them, and the answers continue `decoder_prompts` (None: the
      model's `decoder_start_token_id`).
    * max_new_tokens: one number, or one per prompt.
    * sampler: Greedy, Sample, Beams or any hashable callable (logits float32 [B, V], keys [B]) ->
      int32 [B].
    * stop_tokens: ids that end an answer and are not returned (None: the model's `eos_token_ids`).
    * seed: a draw depends on the seed, the number of the prompt and the place in its answer.
    * batch_size: number of prompts (with Beams: beams) that run together.
    * on_batch: called with the number of prompts that finished, whenever some do.
    * finished: called every few steps for every unfinished answer, with the prompt's number and the
      tokens so far; True ends the answer.
    * hooks: change the distribution of the next token; see `lm.generation.hooks.Hook`.

    Returns the new tokens of each prompt. Raises GenerationError for a prompt that cannot be
    served, before anything compiles, and for a hook that fails.
    """
    asked = requests(model.config, prompts, max_new_tokens, decoder_prompts)
    on_batch = on_batch or (lambda number: None)
    if isinstance(sampler, Beams):
        _check_beams(finished, hooks)
        return _searched(model, params, asked, sampler, stop_tokens, batch_size, on_batch)
    answers: list[list[int]] = [[] for _ in asked]
    model, params = for_decoding(model, params, min(batch_size, len(asked)))
    for members in sizes(asked, batch_size):
        together = [asked[i] for i in members]
        engine = fitting(
            model, together, batch_size, sampler=sampler, stop_tokens=stop_tokens, seed=seed
        )
        keyed = [
            Request(r.tokens, r.budget, r.encoder_tokens, key=i)
            for i, r in zip(members, together, strict=True)
        ]
        watch = finished and (lambda n, tokens, of=members: finished(of[n], tokens))
        for one in engine.run(params, keyed, hooks, watch):
            answers[members[one.number]] = one.answer
            on_batch(1)
    return answers


def sizes(asked: Sequence[Request], rows: int) -> list[list[int]]:
    """Split the numbers of requests into runs of similar cache lengths, at least `rows` each.

    A cache is as long as the longest request needs, and every step reads all of it.
    """
    needed = [bucket(r.length) + bucket(r.budget) for r in asked]
    runs: list[list[int]] = []
    for i in sorted(range(len(asked)), key=lambda i: needed[i]):
        full = runs and len(runs[-1]) >= rows and needed[i] > 2 * needed[runs[-1][0]]
        if not runs or full:
            runs.append([])
        runs[-1].append(i)
    if len(runs) > 1 and len(runs[-1]) < rows:
        last = runs.pop()
        runs[-1] += last
    return runs


def fitting(model: LanguageModel, asked: Sequence[Request], rows: int, **options) -> Engine:
    """Engine whose cache just fits the requests, and that has at most `rows` slots for them."""
    share = at_once()
    needed = sum(len(request.rows) for request in asked)
    longest = lambda which: max(len(row[which]) for request in asked for row in request.rows)
    return Engine(
        model,
        rows=-(-min(max(rows, 1), needed) // share) * share,
        length=bucket(longest(0)) + bucket(max(request.budget for request in asked)),
        encoder_length=bucket(longest(1)) if longest(1) else 0,
        **options,
    )


def stream(
    model: LanguageModel,
    params: dict,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampler: Any = Greedy(),
    *,
    decoder_prompt: Sequence[int] | None = None,
    stop_tokens: Sequence[int] | None = None,
    seed: int = 0,
    hooks: Sequence = (),
) -> Iterator[int]:
    """Yield the tokens of `generate` for one prompt as they come; with Beams, all at the end."""
    asked = requests(
        model.config, [prompt], max_new_tokens, None if decoder_prompt is None else [decoder_prompt]
    )
    if isinstance(sampler, Beams):
        _check_beams(None, hooks)
        yield from _searched(model, params, asked, sampler, stop_tokens, 1, lambda number: None)[0]
        return
    engine = fitting(model, asked, 1, sampler=sampler, stop_tokens=stop_tokens, seed=seed)
    yield from engine.stream(params, asked[0], hooks)


def _check_beams(finished, hooks) -> None:
    if finished is not None:
        raise GenerationError(
            "finished cannot end a beam search, whose answer is only known at its end: "
            "leave it out, or use a sampler"
        )
    if hooks:
        raise GenerationError(
            f"{of_hooks.where(hooks[0])} does not work in a beam search: use a sampler"
        )


def _searched(
    model, params, asked, beams: Beams, stop_tokens, batch_size: int, on_batch
) -> list[list[int]]:
    """Best answers of a beam search, prompts of similar length together."""
    stop = stop_ids(model, stop_tokens)
    model, params = for_decoding(model, params, batch_size)
    order = sorted(range(len(asked)), key=lambda i: asked[i].length)
    rows = max(1, min(batch_size // beams.n, len(asked)))
    answers: list[list[int]] = [[] for _ in asked]
    for first in range(0, len(order), rows):
        members = order[first : first + rows]
        room = bucket(max(asked[i].budget for i in members))
        arrays = padded([asked[i] for i in members], rows)
        tokens, lengths = jax.device_get(search(model, beams, room, params, arrays, stop))
        for row, i in enumerate(members):
            answers[i] = tokens[row, : lengths[row]].tolist()
        on_batch(len(members))
    return answers
