"""Vectors that an interrupted embedding job has computed, kept in a file beside the memory."""

import hashlib
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

PREFIX = "embedding-"
DIGEST = 16  # bytes of a text's sha256


class Unfinished:
    """text -> float16 [dim] of one encoder, as the memory stores it.

    Where the file cannot be written, the vectors are kept in this process only.
    """

    def __init__(self, folder: Path, fingerprint: str, dim: int):
        self._dim, self._path = (
            dim,
            folder / (PREFIX + hashlib.sha256(fingerprint.encode()).hexdigest()[:32]),
        )
        self._record = np.dtype(
            [("digest", f"V{DIGEST}"), ("vector", "<f2", (dim,)), ("crc", "<u4")]
        )
        raw = self._path.read_bytes() if self._path.exists() else b""
        records = np.frombuffer(
            raw[: len(raw) // self._record.itemsize * self._record.itemsize], self._record
        )
        good = [
            record["crc"] == zlib.crc32(record["digest"].tobytes() + record["vector"].tobytes())
            for record in records
        ]
        # Drop a record that was cut off or damaged, and what follows it.
        records = records[: good.index(False) if False in good else None]
        self._known = {record["digest"].tobytes(): record["vector"] for record in records}
        if self._known:
            logger.warning("%s: %s texts are embedded already", self._path, f"{len(self._known):,}")
        if len(raw) > records.nbytes:
            os.truncate(self._path, records.nbytes)

    def lacking(self, texts: Sequence[str]) -> list[str]:
        """Return the distinct texts that have no vector yet."""
        return [text for text in dict.fromkeys(texts) if _digest(text) not in self._known]

    def put(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Store vectors [len(texts), dim]."""
        records = np.zeros(len(texts), self._record)
        for record, text, vector in zip(records, texts, vectors, strict=True):
            digest = _digest(text)
            record["digest"], record["vector"] = np.void(digest), vector
            record["crc"] = zlib.crc32(digest + record["vector"].tobytes())
            self._known[digest] = record["vector"]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as file:
                file.write(records.tobytes())
        except OSError as error:
            logger.warning(
                "%s could not be written (%s): an interrupted embedding would start over",
                self._path,
                error.strerror,
            )

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [len(texts), dim]. Raises KeyError for a text that has no vector."""
        return np.array([self._known[_digest(text)] for text in texts], np.float32).reshape(
            -1, self._dim
        )

    def remove(self) -> None:
        """Delete the files of this and all other encoders."""
        for path in self._path.parent.glob(f"{PREFIX}*"):
            path.unlink(missing_ok=True)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:DIGEST]
