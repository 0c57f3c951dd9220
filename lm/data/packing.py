"""The packer: pieces of documents in rows with one capacity or, with an encoder, two.

A piece is a document, a window of one, an example or a labelled text. Pieces are never split here,
and no piece attends to another: each has a segment number of its own in its row.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lm.data.packed import Packed

OPEN_ROWS = 512  # with two capacities: rows that are tried for each piece
ENCODER = "encoder_"  # prefix of the fields of the encoder's side

Piece = Mapping[str, Sequence | np.ndarray]  # name -> values [n], or [m] on the encoder's side


def token_dtype(largest: int) -> type[np.generic]:
    """Smallest dtype of token ids up to `largest`."""
    return np.uint16 if largest < 2**16 else np.int32


def pack(
    pieces: Iterable[Piece],
    sizes: np.ndarray,
    row_of: np.ndarray,
    capacity: tuple[int, int],
    dtypes: Mapping[str, type],
    document_of: Sequence[int] | np.ndarray,
    document_bytes: Sequence[int],
    counts: Mapping[str, int] | None = None,
) -> Packed:
    """Rows of `capacity` (tokens, encoder tokens; 0 without an encoder) with every piece in place.

    sizes: int [P, 2], positions that each piece takes on both sides. row_of: int32 [P], its row,
    from `rows_of`. dtypes: of the pieces' fields; tokens and targets are among them, others become
    `Packed.extra`. document_of: [P], the document that a piece is of. document_bytes: of each
    document.
    """
    rows = int(row_of.max()) + 1
    side_of = {name: int(name.startswith(ENCODER)) for name in dtypes}
    fields = {
        name: np.zeros((rows, capacity[side_of[name]]), dtype) for name, dtype in dtypes.items()
    }
    segments = [np.zeros((rows, room), np.uint16) for room in capacity]
    used, count, segment_of = [[0] * rows, [0] * rows], [0] * rows, []
    for piece, row, taken in zip(pieces, row_of.tolist(), sizes.tolist(), strict=True):
        starts = used[0][row], used[1][row]
        count[row] += 1
        segment_of.append(count[row])
        for name, values in piece.items():
            start = starts[side_of[name]]
            fields[name][row, start : start + len(values)] = values
        for side, name in enumerate(("tokens", f"{ENCODER}tokens")[: 1 + bool(capacity[1])]):
            segments[side][row, starts[side] : starts[side] + len(piece[name])] = count[row]
            used[side][row] += taken[side]
    if capacity[1]:
        fields[f"{ENCODER}segments"] = segments[1]
    return Packed(
        fields.pop("tokens"),
        fields.pop("targets"),
        segments[0],
        row_of,
        np.array(segment_of, np.int32),
        np.asarray(document_of, np.int32),
        np.asarray(document_bytes, np.int64),
        fields,
        dict(counts or {}),
    )


def rows_of(sizes: np.ndarray, capacity: tuple[int, int]) -> np.ndarray:
    """Row of each piece by its sizes [P, 2], int32 [P]; by the first alone without an encoder."""
    if capacity[1]:
        return best_fit_two(sizes, capacity)
    return best_fit(sizes[:, 0].tolist(), capacity[0])


def best_fit(sizes: list[int], capacity: int) -> np.ndarray:
    """Row of each size, int32 [P]: best-fit decreasing.

    Longest first, each into the fullest row with enough room.
    """
    row_of = np.zeros(len(sizes), np.int32)
    rows = 0
    room: list[int] = []  # distinct numbers of free positions in open rows, ascending
    open_rows: dict[int, list[int]] = {}
    for piece in np.argsort(-np.asarray(sizes), kind="stable"):
        size = sizes[piece]
        i = bisect.bisect_left(room, size)
        if i == len(room):
            row, left = rows, capacity
            rows += 1
        else:
            left = room[i]
            row = open_rows[left].pop()
            if not open_rows[left]:
                del open_rows[left], room[i]
        row_of[piece] = row
        left -= size
        if left:
            if left not in open_rows:
                open_rows[left] = []
                bisect.insort(room, left)
            open_rows[left].append(row)
    return row_of


def best_fit_two(sizes: np.ndarray, capacity: tuple[int, int]) -> np.ndarray:
    """Row of each pair of sizes [P, 2], int32 [P]: best-fit decreasing.

    The largest pairs first, each into the open row it fills most, measured by the squares of the
    remaining space (Panigrahy et al. 2011, "Heuristics for Vector Bin Packing", section 3.2). At
    most OPEN_ROWS rows are open: the fullest is closed, so the time is linear in the number of
    pieces.
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
