"""Packed rows of tokens, and the folder of arrays that they are saved in."""

import dataclasses
import json
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Mapping

import numpy as np

UNFINISHED = "unfinished-"  # prefix of folders that are being written
BLOCK = 2**16  # rows read at a time
_ARRAYS = (
    "tokens",
    "targets",
    "segments",
    "piece_row",
    "piece_segment",
    "piece_document",
    "document_bytes",
)


@dataclasses.dataclass(frozen=True)
class Packed:
    """N rows of T tokens. A piece is a document, or a window of one: one segment id in one row.

    tokens, targets: uint16 or int32 [N, T].
    segments: uint16 [N, T], from 1 within each row, 0 = padding.
    piece_row, piece_segment, piece_document: int32 [P].
    document_bytes: int64 [D], UTF-8 bytes of each document's text.
    extra: further fields of `lm.Batch` by name, N rows each, such as weights [N, T],
    encoder_tokens and encoder_segments [N, S].
    counts: by name, what was dropped or cut when the rows were made.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    piece_row: np.ndarray
    piece_segment: np.ndarray
    piece_document: np.ndarray
    document_bytes: np.ndarray
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def stats(self) -> dict[str, float]:
        """Counts, and `filled`: the share of positions with a prediction. Also `encoder_filled`."""
        pieces = np.bincount(self.piece_document, minlength=len(self.document_bytes))
        predictions = int(np.count_nonzero(self.segments))
        found: dict[str, float] = {
            "documents": len(self.document_bytes),
            "bytes": int(self.document_bytes.sum()),
            "rows": len(self),
            "length": self.length,
            "predictions": predictions,
            "split_documents": int((pieces > 1).sum()),
            "filled": predictions / self.segments.size,
        }
        if "weights" in self.extra:
            found["trained_tokens"] = int(np.count_nonzero(self.extra["weights"]))
        if "encoder_segments" in self.extra:
            read = self.extra["encoder_segments"]
            found["encoder_filled"] = int(np.count_nonzero(read)) / read.size
        return found | dict(self.counts)


def digest(packed: Packed) -> str:
    """Number of rows and CRC-32 of their fields, in words."""
    total = 0
    arrays: dict = {
        "tokens": packed.tokens,
        "targets": packed.targets,
        "segments": packed.segments,
        **packed.extra,
    }
    for _, array in sorted(arrays.items()):
        if known := getattr(array, "digest", ""):  # of an array that is too large to read again
            total = zlib.crc32(known.encode(), total)
            continue
        for start in range(0, len(array), BLOCK):
            total = zlib.crc32(np.ascontiguousarray(array[start : start + BLOCK]).data, total)
    return f"rows {len(packed):,} with CRC-32 {total:08x}"


def load(folder: pathlib.Path) -> Packed:
    """Memory-map the rows that `save` wrote."""
    found = {
        file.stem: np.load(file, mmap_mode="r", allow_pickle=False)
        for file in sorted(folder.glob("*.npy"))
    }
    counts = folder / "counts.json"
    return Packed(
        **{name: found.pop(name) for name in _ARRAYS},
        extra=found,
        counts=json.loads(counts.read_text()) if counts.exists() else {},
    )


def save(packed: Packed, folder: pathlib.Path) -> None:
    """Write the folder atomically, since another process may be packing the same files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=UNFINISHED))
    try:
        for name, array in (
            {name: getattr(packed, name) for name in _ARRAYS} | dict(packed.extra)
        ).items():
            np.save(unfinished / f"{name}.npy", array, allow_pickle=False)
        (unfinished / "stats.json").write_text(json.dumps(packed.stats(), indent=1))
        (unfinished / "counts.json").write_text(json.dumps(dict(packed.counts)))
        unfinished.rename(folder)
    except BaseException as e:  # also on an interrupt, remove the unfinished folder
        shutil.rmtree(unfinished, ignore_errors=True)
        if not (isinstance(e, OSError) and folder.exists()):
            raise


def named(count: str) -> str:
    """Name of a count in words. A name with a quotation is unchanged."""
    return count if "'" in count else count.replace("_", " ")


def synthetic(vocab_size: int, rows: int, length: int, seed: int = 0) -> Packed:
    """Random tokens, one document per row, for benchmarks."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (rows, length + 1), dtype=np.int32)
    index = np.arange(rows, dtype=np.int32)
    return Packed(
        ids[:, :-1],
        ids[:, 1:],
        np.ones((rows, length), np.uint16),
        index,
        np.ones_like(index),
        index,
        np.full(rows, length, np.int64),
    )
