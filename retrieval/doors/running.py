"""Run a model with a door: answers to questions, and log-probabilities of what follows."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lm.evaluation.likelihood import token_log_likelihoods
from lm.generation.answers import fitting
from lm.generation.requests import Generated, GenerationError, Request
from retrieval.doors.door import Asked, Door, Find, Input, Read
from retrieval.doors.in_context import reads_apart

ROWS = 16  # slots of the engine


@dataclasses.dataclass
class Progress:
    """An answer in the making."""

    asked: Asked
    input: Input
    tokens: list[int]
    done: bool = False


def answers(
    door: Door,
    reader,
    asked: Sequence[Asked],
    find: Find,
    max_new_tokens: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[Read]:
    """Answer every question greedily from its passages.

    find: search for the passages of a stride. Raises RetrievalError, before the reader runs, for a
    question that is blank or too long.
    """
    room, on_batch = reader.prompt_tokens(max_new_tokens), on_batch or (lambda number: None)
    inputs = [door.question(reader, each, room) for each in asked]
    if door.whole:
        tokens = _whole(door, reader, inputs, max_new_tokens, on_batch)
    elif door.stride:
        begun = [Progress(*each, []) for each in zip(asked, inputs, strict=True)]
        _in_strides(door, reader, begun, find, room, max_new_tokens, on_batch)
        inputs, tokens = [each.input for each in begun], [each.tokens for each in begun]
    elif all(len(each.rows) == 1 and not each.segments for each in inputs):
        texts = reader([each.rows[0] for each in inputs], max_new_tokens, on_batch)
        return [Read(t, each.shown, each.cut) for t, each in zip(texts, inputs, strict=True)]
    else:
        requests = [request(reader, each, [], max_new_tokens) for each in inputs]
        tokens = [found.answer for found in generated(reader, requests, on_batch)]
    return [
        Read(reader.text(t), each.shown, each.cut) for t, each in zip(tokens, inputs, strict=True)
    ]


def request(reader, given: Input, so_far: Sequence[int], budget: int) -> Request:
    """Request to go on after `so_far`; of several rows all but the last token are a member's."""
    rows, weights, written = given.rows, given.log_weights, list(so_far)
    mixed = len(rows) > 1
    if not reads_apart(reader):
        if mixed:
            last = [rows[0][-1], *written]
            members = [row[:-1] for row in rows]
            return Request(last, budget, members=members, log_weights=weights)
        return Request([*rows[0], *written], budget)
    begun = [reader.start, *written]
    if mixed:
        members = [row[:-1] for row in rows]
        return Request(begun, budget, rows[0][-1:], members=members, log_weights=weights)
    return Request(begun, budget, rows[0], encoder_segments=given.segments)


def generated(
    reader, requests: Sequence[Request], on_batch: Callable[[int], None]
) -> list[Generated]:
    """What each request gets. Raises GenerationError for one that is refused."""
    most = max(len(each.rows) for each in requests)
    engine = fitting(reader.model, requests, max(ROWS, most), stop_tokens=reader.stop_tokens)
    found: list[Generated | None] = [None] * len(requests)
    for one in engine.run(reader.params, requests):
        if one.finish == "refused":
            raise GenerationError(one.error)
        found[one.number] = one
        on_batch(1)
    return [one for one in found if one is not None]


def _in_strides(
    door, reader, begun: list[Progress], find: Find, room: int, most: int, on_batch
) -> None:
    """Write `door.stride` tokens at a time; before all but the first, search with the latest."""
    nothing, forces = lambda number: None, reader.model.config.forced_eos_token_id is not None
    for start in range(0, most, door.stride):
        left = [each for each in begun if not each.done]
        if not left:
            return
        again = [each for each in left if start and each.asked.hits]
        if again:
            hits = find([_query(door, reader, each) for each in again])
            for each, found in zip(again, hits, strict=True):
                each.input = door.question(
                    reader, dataclasses.replace(each.asked, hits=tuple(found)), room
                )
        size = min(door.stride, most - start)
        # A forced last token must not be forced at the end of a stride: it is dropped.
        budget = size + (forces and start + size < most)
        asked = [request(reader, each.input, each.tokens, budget) for each in left]
        for each, one in zip(left, generated(reader, asked, nothing), strict=True):
            each.tokens += one.answer[:size]
            stopped = one.finish == "stop" and (budget == size or len(one.answer) < size)
            each.done = stopped or start + size >= most
            if each.done:
                on_batch(1)


def _query(door: Door, reader, each: Progress) -> str:
    """The last `door.query` tokens of the question and the answer so far."""
    asked = reader.tokenizer(each.asked.question, add_special_tokens=False)["input_ids"]
    return reader.tokenizer.decode([*asked, *each.tokens][-door.query :], skip_special_tokens=True)


def _whole(door, reader, inputs: list[Input], most: int, on_batch) -> list[list[int]]:
    """Most probable of the greedy answers to each passage, by their mixed probabilities."""
    nothing = lambda number: None
    requests = [request(reader, Input((row,)), [], most) for given in inputs for row in given.rows]
    drawn = iter(generated(reader, requests, nothing))
    best = []
    for given in inputs:
        found = [next(drawn) for _ in given.rows]
        candidates = list(dict.fromkeys(tuple(one.tokens) for one in found))
        if len(candidates) > 1:
            scores = _scores(reader, given, found, candidates, door.fast)
            total = np.logaddexp.reduce(scores + np.asarray(given.log_weights), axis=1)
            candidates = [candidates[int(np.argmax(total))]]
        best.append(next(one.answer for one in found if tuple(one.tokens) == candidates[0]))
        on_batch(1)
    return best


def _scores(
    reader,
    given: Input,
    found: Sequence[Generated],
    candidates: Sequence[tuple[int, ...]],
    fast: bool,
) -> np.ndarray:
    """log p(candidate | row), float64 [candidates, rows].

    Of the candidate that a row gave, it is known already; fast: of others it is -inf.
    """
    scores = np.full((len(candidates), len(found)), -np.inf)
    for row, one in enumerate(found):
        scores[candidates.index(tuple(one.tokens)), row] = one.log_probs.sum(dtype=np.float64)
    if fast:
        return scores
    left = np.argwhere(np.isneginf(scores))
    pairs = [(given.rows[row], candidates[number]) for number, row in left]
    each = token_log_likelihoods(reader.model, reader.params, pairs, tokenizer=reader.tokenizer)
    scores[tuple(left.T)] = [one.sum(dtype=np.float64) for one, _ in each]
    return scores


def log_probs(
    door: Door,
    reader,
    inputs: Sequence[Input],
    continuations: Sequence[Sequence[int]],
    on_batch: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """log-probabilities of each continuation's tokens, float64 [n].

    A door that mixes whole answers gives the one of the whole continuation, [1].
    """
    rows = [row for given in inputs for row in given.rows]
    number = [i for i, given in enumerate(inputs) for _ in given.rows]
    found = token_log_likelihoods(
        reader.model,
        reader.params,
        [(row, continuations[i]) for i, row in zip(number, rows, strict=True)],
        [inputs[i].segments for i in number],
        tokenizer=reader.tokenizer,
        on_batch=on_batch,
    )
    each = iter(found)
    mixed = []
    for given in inputs:
        of = np.stack([next(each)[0].astype(np.float64) for _ in given.rows])
        of = of.sum(axis=1, keepdims=True) if door.whole else of
        mixed.append(np.logaddexp.reduce(of + np.asarray(given.log_weights)[:, None], axis=0))
    return mixed
