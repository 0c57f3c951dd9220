"""Whole examples in rows: one that does not fit is truncated or dropped, and counted."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from lm.data import packing
from lm.data.encode.encoding import Encoded
from lm.data.packed import Packed
from lm.data.read.sources import DataError

POLICIES = ("drop", "truncate_prompt", "raise")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Capacity of a row, and the policy for examples that exceed it.

    length: predictions per row. read: encoder tokens per row, 0 without an encoder.
    too_long: "drop" the example; "truncate_prompt": remove the start of its prompt, or drop it if
    its answer alone is too long; or "raise".
    most: maximum share of examples that may be dropped or truncated before it is an error.
    """

    length: int
    read: int = 0
    too_long: str = "drop"
    most: float = 0.01


def pack(
    encoded: Iterable[Encoded],
    limits: Limits,
    name: str = "the data",
    counts: dict[str, int] | None = None,
    prompt_weight: float = 0.0,
) -> Packed:
    """Pack examples into rows by best fit.

    Extra fields: weights [N, T], and for an encoder-decoder encoder_tokens and encoder_segments
    [N, S]. The weight is 1 for a trained token and `prompt_weight` for any other (a decoder's
    prompts and the turns between answers). counts: added to those of the result.
    Raises DataError, which calls the examples `name`, when there are none or too many are too long.
    """
    kept, found = fitted(encoded, limits, name)
    sizes = np.array([[len(e.ids) - 1, len(e.read)] for e in kept])
    capacity = (limits.length, limits.read)
    largest = max(int(max(e.ids.max(), e.read.max(initial=0))) for e in kept)
    names = ("tokens", "targets", *(["encoder_tokens"] if limits.read else []))
    dtypes: dict[str, type] = dict.fromkeys(names, packing.token_dtype(largest))
    dtypes["weights"] = np.float32 if prompt_weight else np.uint8
    pieces = (
        {
            "tokens": e.ids[:-1],
            "targets": e.ids[1:],
            "weights": np.where(e.trained[1:], 1, prompt_weight),
        }
        | ({"encoder_tokens": e.read} if limits.read else {})
        for e in kept
    )
    return packing.pack(
        pieces,
        sizes,
        packing.rows_of(sizes, capacity),
        capacity,
        dtypes,
        np.arange(len(kept)),
        [e.bytes for e in kept],
        found | (counts or {}),
    )


def fitted(
    encoded: Iterable[Encoded], limits: Limits, name: str = "the data"
) -> tuple[list[Encoded], dict[str, int]]:
    """(examples that fit, maybe truncated; counts of the others). Raises DataError as `pack`."""
    kept: list[Encoded] = []
    counts = dict.fromkeys(
        (
            "dropped_prompts",
            "dropped_responses",
            "truncated_prompts",
            "cut_tokens",
            "cut_by_template",
        ),
        0,
    )
    total = longest = 0
    for e in encoded:
        total += 1
        counts["cut_by_template"] += bool(e.cut)
        over = (len(e.ids) - 1 - limits.length, len(e.read) - limits.read if limits.read else 0)
        if max(over) <= 0:
            kept.append(e)
            continue
        longest = max(longest, len(e.ids) - 1, len(e.read))
        shorter = _shortened(e, over) if limits.too_long == "truncate_prompt" else None
        if shorter is not None:
            counts["truncated_prompts"] += 1
            counts["cut_tokens"] += max(over)
            kept.append(shorter)
        else:
            answer = len(e.ids) - e.prompt > limits.length
            counts["dropped_responses" if answer else "dropped_prompts"] += 1
            counts["cut_tokens"] += len(e.ids) + len(e.read)
    if not total:
        raise DataError(f"{name} holds no example")
    long = counts["dropped_prompts"] + counts["dropped_responses"] + counts["truncated_prompts"]
    if long and (limits.too_long == "raise" or long > limits.most * total):
        allowed = (
            "none is allowed (task.too_long='raise')"
            if limits.too_long == "raise"
            else f"task.max_long={limits.most:g} is allowed"
        )
        room = f"{limits.length} tokens" + (
            f", or {limits.read} for the encoder" if limits.read else ""
        )
        raise DataError(
            f"{name}: {long:,} of {total:,} examples ({long / total:.1%}) are longer than a row "
            f"of {room}, the longest {longest:,}; "
            f"{allowed}. Raise length, shorten the data, or set task.max_long to the share that "
            "may be left out (too_long='drop') or cut "
            f"(too_long='truncate_prompt'); in {counts['dropped_responses']:,} the answer itself "
            "is too long"
        )
    if not kept:
        raise DataError(
            f"{name}: none of {total:,} examples fits in a row of {limits.length} tokens; raise "
            "length"
        )
    return kept, counts


def _shortened(e: Encoded, over: Sequence[int]) -> Encoded | None:
    """Remove tokens from the start of the prompt, but keep its special tokens.

    over: surplus tokens (decoder, encoder). Returns None if the prompt is too short for it.
    """
    first, last = e.keep
    ids, trained, prompt, read = e.ids, e.trained, e.prompt, e.read
    if over[1] > 0:
        if len(read) - first - last <= over[1]:
            return None
        read = np.concatenate([read[:first], read[first + over[1] :]])
    if over[0] > 0:
        if len(e.read) or prompt - first <= over[0]:
            return None
        ids, trained = (np.concatenate([x[:first], x[first + over[0] :]]) for x in (ids, trained))
        prompt -= over[0]
    return dataclasses.replace(e, ids=ids, trained=trained, prompt=prompt, read=read)
