"""Requests for generation and what they get; validation, and padding to few shapes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.models import ModelConfig, inputs


class GenerationError(ValueError):
    """A prompt or budget that cannot be served; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt with its budget.

    tokens: the prompt (of the decoder). budget: maximal number of new tokens. encoder_tokens: the
    encoder's input in an encoder-decoder.

    key: the number that stands for this request in its random draws (None: its place among the
    requests). inputs: further fields of its batch, without the row axis: `neighbours` [C, S, N] and
    `neighbour_segments` [C, S] of the whole row, prompt and answer.

    encoder_segments: the number, from 1, of the passage that each of encoder_tokens belongs to; ():
    all are one. Passages are encoded apart, and the decoder reads all of them (fusion in decoder).

    members: token lists, such as retrieved passages, each read before the prompt (before
    encoder_tokens in an encoder-decoder) in a slot of its own. The members' next-token
    probabilities are mixed, log p = logsumexp(log_weights + log p of the members), and all of them
    read the same token (RAG-Token, REPLUG).
    """

    tokens: Sequence[int]
    budget: int
    encoder_tokens: Sequence[int] = ()
    key: int | None = None
    inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    members: Sequence[Sequence[int]] = ()
    log_weights: Sequence[float] = ()
    encoder_segments: Sequence[int] = ()

    @property
    def length(self) -> int:
        return max(max(len(tokens), len(encoder)) for tokens, encoder in self.rows)

    @property
    def rows(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        """(tokens, encoder_tokens) of each slot that the request takes."""
        if not self.members:
            return [(self.tokens, self.encoder_tokens)]
        if len(self.encoder_tokens):
            return [(self.tokens, [*member, *self.encoder_tokens]) for member in self.members]
        return [([*member, *self.tokens], ()) for member in self.members]


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a request got.

    number: the place of the request among those given. tokens: the tokens drawn, with the stop
    token that ended them. log_probs: the model's own log-probability of each (of the mixture of
    its members). behaviour_log_probs: that of the distribution it was chosen from: after hooks,
    forced tokens, penalty, temperature and truncation; NaN from a sampler that does not tell.
    finish: "stop" (a stop token), "length" (the budget), "callback" or "refused" (`error` says
    why). sources: for each token, what the hooks' `find` named as its sources.
    """

    number: int
    tokens: list[int]
    log_probs: np.ndarray
    behaviour_log_probs: np.ndarray
    finish: str
    sources: tuple[tuple, ...] = ()
    error: str = ""

    @property
    def answer(self) -> list[int]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.finish == "stop" else self.tokens


def requests(
    c: ModelConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    decoder_prompts: Sequence[Sequence[int]] | None,
) -> list[Request]:
    """Build one Request per prompt.

    Raises GenerationError for the first that the model cannot serve.
    """
    if c.head not in ("causal_lm", "seq2seq_lm"):
        raise GenerationError(
            f"a {c.family} model with head={c.head!r} does not generate text; "
            "expected causal_lm or seq2seq_lm"
        )
    given = np.asarray(max_new_tokens)
    budgets = given.tolist() if given.ndim else [given.item()] * len(prompts)
    if len(budgets) != len(prompts):
        raise GenerationError(
            f"max_new_tokens has {len(budgets)} entries for {len(prompts)} prompts: "
            "give one number, or one a prompt"
        )
    if not c.encoder_layers:
        if decoder_prompts is not None:
            raise GenerationError(
                f"decoder_prompts are for encoder-decoders; this {c.family} model has no encoder: "
                "put them into prompts"
            )
        asked = [Request(prompt, budget) for prompt, budget in zip(prompts, budgets, strict=True)]
    else:
        if decoder_prompts is None:
            if c.decoder_start_token_id is None:
                raise GenerationError(
                    f"this {c.family} model names no decoder_start_token_id: "
                    "say in decoder_prompts what answers begin with"
                )
            decoder_prompts = [[c.decoder_start_token_id]] * len(prompts)
        if len(decoder_prompts) != len(prompts):
            raise GenerationError(
                f"there are {len(decoder_prompts)} decoder_prompts for {len(prompts)} prompts: "
                "give one a prompt"
            )
        asked = [Request(*each) for each in zip(decoder_prompts, budgets, prompts, strict=True)]
    for i, request in enumerate(asked):
        check(c, i, request)
    return asked


def check(c: ModelConfig, i: int, request: Request) -> None:
    """Raise GenerationError for a request that the model cannot serve, which is called `i`."""
    if len(request.log_weights) != len(request.members):
        raise GenerationError(
            f"request {i} has {len(request.members)} members and {len(request.log_weights)} "
            "log_weights: give one a member"
        )
    if said := _apart(request):
        raise GenerationError(f"request {i} has {said}")
    for tokens, encoder_tokens in request.rows:
        _check_row(
            c,
            i,
            dataclasses.replace(
                request, tokens=tokens, encoder_tokens=encoder_tokens, members=(), log_weights=()
            ),
        )


def _apart(request: Request) -> str:
    """What is wrong with the passages that are encoded apart; "" if nothing is."""
    numbers = np.asarray(request.encoder_segments, np.int64)
    if not numbers.size:
        return ""
    if request.members:
        return "both members and encoder_segments: passages are mixed or encoded apart"
    if len(numbers) != len(request.encoder_tokens):
        return (
            f"{len(request.encoder_tokens)} encoder_tokens and {len(numbers)} encoder_segments: "
            "give each token the number of its passage"
        )
    if numbers[0] != 1 or not np.isin(np.diff(numbers), (0, 1)).all():
        return "encoder_segments that do not count passages 1, 2, ... in their order"
    return ""


def _check_row(c: ModelConfig, i: int, request: Request) -> None:
    if not isinstance(request.budget, int) or request.budget < 1:
        raise GenerationError(
            f"max_new_tokens={request.budget}: expected a whole number, at least 1"
        )
    read = (
        (("decoder prompt", request.tokens), ("prompt", request.encoder_tokens))
        if c.encoder_layers
        else (("prompt", request.tokens),)
    )
    for what, tokens in read:
        if not len(tokens):
            raise GenerationError(
                f"{what} {i} is empty: give at least one token (a start token, for example)"
            )
        if said := inputs.outside(c, tokens):
            raise GenerationError(f"{what} {i} holds {said}")
    longest = len(request.encoder_tokens)
    if len(request.encoder_segments):
        longest = int(np.bincount(request.encoder_segments).max())
    if longest > c.max_length:
        passage = "a passage of " if len(request.encoder_segments) else ""
        raise GenerationError(
            f"prompt {i} has {passage}{longest} tokens, but this model's encoder reads at most "
            f"{c.max_length}: shorten it"
        )
    if len(request.tokens) + request.budget > c.max_length:
        raise GenerationError(
            f"{read[0][0]} {i} has {len(request.tokens)} tokens and {request.budget} more are "
            f"asked for, but this model's context is {c.max_length} tokens: shorten the prompt or "
            "lower max_new_tokens"
        )


def bucket(n: int) -> int:
    """Round n up to one of few padded sizes to compile for.

    Multiples of 32, then coarser; beyond 128 at most a quarter is padding.
    """
    step = max(32, 2 ** (max(n, 1).bit_length() - 3))
    return -(-n // step) * step


def padded(asked: Sequence[Request], rows: int) -> dict[str, Any]:
    """Pad the requests to int32 arrays of `rows` rows; surplus rows have a budget of 0.

    tokens, segments [rows, T] are padded on the left, so that every row writes the same cache slot;
    budgets [rows]. Encoder-decoders also have encoder_tokens, encoder_segments [rows, S], padded on
    the right. Segments are 1 for tokens and 0 for padding.
    """
    asked = [*asked, *[dataclasses.replace(asked[0], budget=0)] * (rows - len(asked))]
    tokens, segments = stacked([request.tokens for request in asked], left=True)
    arrays = {
        "tokens": tokens,
        "segments": segments,
        "budgets": np.asarray([request.budget for request in asked], np.int32),
    }
    if len(asked[0].encoder_tokens):
        arrays["encoder_tokens"], arrays["encoder_segments"] = stacked(
            [request.encoder_tokens for request in asked], left=False
        )
        # only the start token, the usual case: no padding needed
        if max(len(request.tokens) for request in asked) == 1:
            arrays |= {name: arrays[name][:, -1:] for name in ("tokens", "segments")}
    return arrays


def stacked(
    lists: Sequence[Sequence[int]], left: bool, least: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pad token lists on the left or right to int32 arrays [N, T]: tokens, and 1 for real ones.

    least: tokens that T has room for at least.
    """
    width = bucket(max(least, *map(len, lists)))
    tokens, segments = (
        np.zeros((len(lists), width), np.int32),
        np.zeros((len(lists), width), np.int32),
    )
    for row, values in enumerate(lists):
        at = slice(width - len(values), width) if left else slice(0, len(values))
        tokens[row, at], segments[row, at] = values, 1
    return tokens, segments
