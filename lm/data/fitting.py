"""Pack whole examples into rows.

No example is split. One that does not fit is truncated or dropped as the policy says, and counted.
A row of an encoder-decoder has two capacities: encoder tokens and decoder tokens.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from lm.data.encode.encoding import Encoded
from lm.data.packing import Packed, best_fit
from lm.data.read.sources import DataError

POLICIES = ("drop", "truncate_prompt", "raise")
OPEN_ROWS = 512  # with two capacities: rows that are tried for each example


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
    row_of = (
        best_fit(sizes[:, 0].tolist(), limits.length)
        if not limits.read
        else best_fit_two(sizes, (limits.length, limits.read))
    )
    rows, most = (
        int(row_of.max()) + 1,
        max(int(max(e.ids.max(), e.read.max(initial=0))) for e in kept),
    )
    dtype = np.uint16 if most < 2**16 else np.int32
    tokens, targets = np.zeros((2, rows, limits.length), dtype)
    segments, weights = (
        np.zeros((rows, limits.length), of)
        for of in (np.uint16, np.float32 if prompt_weight else np.uint8)
    )
    read, read_segments = (
        np.zeros((rows, limits.read), dtype),
        np.zeros((rows, limits.read), np.uint16),
    )
    used, segment_of = np.zeros((rows, 2), np.int32), np.zeros(len(kept), np.int32)
    count = np.zeros(rows, np.int32)
    for i, e in enumerate(kept):
        row = row_of[i]
        count[row] += 1
        segment_of[i] = count[row]
        (at, into), (size, heard) = used[row], sizes[i]
        tokens[row, at : at + size], targets[row, at : at + size] = e.ids[:-1], e.ids[1:]
        segments[row, at : at + size], weights[row, at : at + size] = (
            count[row],
            np.where(e.trained[1:], 1, prompt_weight),
        )
        read[row, into : into + heard], read_segments[row, into : into + heard] = e.read, count[row]
        used[row] += sizes[i]
    extra = {"weights": weights} | (
        {"encoder_tokens": read, "encoder_segments": read_segments} if limits.read else {}
    )
    document, sizes_bytes = (
        np.arange(len(kept), dtype=np.int32),
        np.array([e.bytes for e in kept], np.int64),
    )
    return Packed(
        tokens,
        targets,
        segments,
        row_of,
        segment_of,
        document,
        sizes_bytes,
        extra,
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


def best_fit_two(sizes: np.ndarray, capacity: tuple[int, int]) -> np.ndarray:
    """Assign each pair of sizes [P, 2] to a row, int32 [P].

    Best-fit decreasing: the largest pairs first, each into the open row it fills most, measured
    by the squares of the remaining space (Panigrahy et al. 2011, "Heuristics for Vector Bin
    Packing", section 3.2). At most OPEN_ROWS rows are open: the fullest is closed, so the time is
    linear in the number of examples.
    """
    share = sizes / np.asarray(capacity)
    row_of = np.zeros(len(sizes), np.int32)
    left = np.zeros((0, 2), np.int64)
    open_rows = np.zeros(0, np.int64)
    rows = 0
    for i in np.argsort(-share.sum(axis=1), kind="stable"):
        after = left - sizes[i]
        fits = (after >= 0).all(axis=1)
        if fits.any():
            at = int(np.argmin(np.where(fits, np.square(after / capacity).sum(axis=1), np.inf)))
        else:
            if len(left) == OPEN_ROWS:
                fullest = int(np.argmin((left / capacity).min(axis=1)))
                left, open_rows = np.delete(left, fullest, 0), np.delete(open_rows, fullest)
            left, open_rows = np.vstack([left, capacity]), np.append(open_rows, rows)
            at, rows = len(left) - 1, rows + 1
        left[at] -= sizes[i]
        row_of[i] = open_rows[at]
    return row_of
