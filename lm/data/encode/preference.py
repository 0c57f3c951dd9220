"""Pack preference pairs: both answers of a pair are neighbours in one row.

The chosen answer of pair i of a row, with its prompt, is segment 2i - 1, and the rejected one
segment 2i. So no pair is divided by micro-batches or devices, and rows have little padding. A
judged answer is packed in the same way, with the answer of another record to its prompt.
"""

from collections.abc import Sequence

import numpy as np

from lm.data import packing
from lm.data.cache import cached
from lm.data.encode.encoding import Encoded, Encoder
from lm.data.packed import Packed
from lm.data.read import sources
from lm.data.read.sources import DataError, Tally
from lm.data.records import labels as reading
from lm.data.records import preference
from lm.data.records.preference import Judged
from lm.data.records.turns import BadRecord
from lm.data.templates import Template
from lm.models.config import ConfigError


def pack_files(
    patterns: str,
    template: Template,
    tokenizer,
    capacity: tuple[int, int],
    cache,
    *,
    decoder_start: int | None = None,
    whole: bool = False,
    judged: bool = False,
    max_long: float = 0.0,
    max_bad_share: float = 0.0,
    tally: Tally | None = None,
    share: float = 0.0,
    held_out: bool = False,
) -> Packed:
    """Pack the pairs of the files, or memory-map them from `cache`.

    capacity: tokens of a row, and of its encoder (0 without one); a pair must fit as a whole.
    decoder_start: start token of an encoder-decoder. whole: rows hold every token of an answer, as
    a reward model reads it, and not the next token to predict. judged: records are single answers
    with a label, which is the field `desirable` of their tokens.
    max_long: share of pairs that may be left out as too long. The other arguments are those of
    `lm.data.records.labels.read`. Raises DataError, with file and line, for unusable data.
    """
    if template.options.get("shots", 0):
        raise ConfigError("a template with few-shot examples (shots) has no place in preferences")
    files = sources.find_files(patterns)
    options = [capacity, decoder_start, whole, judged, max_long, max_bad_share, share, held_out]
    key = ["preference", options, template.fingerprint, sources.content_hash(files)]

    def make() -> Packed:
        counted = Tally() if tally is None else tally
        found = reading.read(
            patterns,
            preference.judged if judged else preference.pair,
            max_bad_share=max_bad_share,
            tally=counted,
            share=share,
            held_out=held_out,
        )
        bad = {"bad_records": counted.bad} if counted.bad else {}
        pairs, labels = found, None
        if judged:
            found = [one for of_row in found for one in of_row]
            pairs, labels = _mismatched(found, max_bad_share, bad), [x.desirable for x in found]
        rendered = (
            template.render(record, i)
            for i, pair in enumerate(pairs)
            for record in preference.records(pair)
        )
        encoded = list(Encoder(tokenizer, decoder_start)(rendered))
        both = list(zip(encoded[::2], encoded[1::2], strict=True))
        where = [one.source for one in pairs]
        return pack(both, where, capacity, whole, max_long, bad, labels)

    return cached(cache, key, tokenizer, make)


def _mismatched(found: list[Judged], most: float, counts: dict[str, int]) -> list:
    """`preference.mismatched`, after a check for records that contradict each other."""
    if against := preference.contradictory(found):
        if len(against) > most * len(found):
            raise DataError(
                f"{against[0].source}: {len(against):,} of {len(found):,} answers are labelled "
                f"differently in another record with the same prompt, more than "
                f"data.max_bad_share={most:g} allows: remove them"
            )
        counts["contradictory"] = len(against)
    try:
        return preference.mismatched(found)
    except BadRecord as error:
        raise DataError(
            f"{error}, and the divergence is estimated from answers to other prompts: give records "
            "with different prompts and answers"
        ) from None


def pack(
    pairs: Sequence[tuple[Encoded, Encoded]],
    where: Sequence[str],
    capacity: tuple[int, int],
    whole: bool = False,
    max_long: float = 0.0,
    counts: dict[str, int] | None = None,
    desirable: Sequence[bool] | None = None,
) -> Packed:
    """Pack pairs that were encoded; where: file and line of each. See `pack_files`.

    desirable: label of the first answer of each, which its tokens have as the field `desirable`.
    """
    sizes = np.array([[[len(e.ids) - (not whole), len(e.read)] for e in both] for both in pairs])
    total = sizes.sum(axis=1)
    fits = (total[:, 0] <= capacity[0]) & ((total[:, 1] <= capacity[1]) | (capacity[1] == 0))
    long = int((~fits).sum())
    if long > max_long * len(pairs) or long == len(pairs):
        first = int(np.argmin(fits))
        tokens, read = total[first].tolist()
        longest = f"{tokens:,} tokens" + (f" and {read:,} for the encoder" if read else "")
        room = f"{capacity[0]:,}" + (f" and {capacity[1]:,}" if capacity[1] else "")
        raise DataError(
            f"{long:,} of {len(pairs):,} pairs do not fit in a row with both answers, more than "
            f"task.max_long={max_long:g} allows; the first, {where[first]}, has {longest} and a "
            f"row {room}: raise length, shorten the data, or raise task.max_long to leave them out"
        )
    kept = [both for both, fit in zip(pairs, fits, strict=True) if fit]
    largest = max(int(max(e.ids.max(), e.read.max(initial=0))) for both in kept for e in both)
    names = ("tokens", "targets", *(["encoder_tokens"] if capacity[1] else []))
    dtypes: dict[str, type] = dict.fromkeys(names, packing.token_dtype(largest))
    dtypes["weights"] = np.uint8
    labels = np.zeros(len(kept), np.uint8)
    if desirable is not None:
        dtypes["desirable"] = np.uint8
        labels[:] = np.asarray(desirable)[fits]
        counts = (counts or {}) | {
            "desirable": int(labels.sum()),
            "undesirable": int((labels == 0).sum()),
        }

    def piece(e: Encoded, label: int) -> packing.Piece:
        shift = int(not whole)
        fields = {
            "tokens": e.ids[: len(e.ids) - shift],
            "targets": e.ids[shift:],
            "weights": e.trained[shift:],
        }
        if desirable is not None:
            fields["desirable"] = np.full(len(e.ids) - shift, label, np.uint8)
        return fields | ({"encoder_tokens": e.read} if capacity[1] else {})

    row_of = np.repeat(packing.rows_of(total[fits], capacity), 2)
    return packing.pack(
        [
            piece(e, label if place == 0 else 0)
            for both, label in zip(kept, labels, strict=True)
            for place, e in enumerate(both)
        ],
        sizes[fits].reshape(-1, 2),
        row_of,
        capacity,
        dtypes,
        np.arange(2 * len(kept)),
        [e.bytes for both in kept for e in both],
        (counts or {}) | ({"pairs_too_long": long} if long else {}),
    )
