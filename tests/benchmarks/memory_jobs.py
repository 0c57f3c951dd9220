"""Jobs of the retrieval benchmark on a memory: build it, open it, edit it."""

import json
import re
import shutil
import time
import zlib
from pathlib import Path

import numpy as np

from lm.data import samples
from tests.benchmarks import vectors
from tests.benchmarks.index_jobs import peak_mb, resident_mb

EDITS = 100
WORDS = np.random.default_rng(0).normal(size=(4096, 128)).astype(np.float32)


def toy(rows: int):
    """Encoder that sums a random vector for each word of a text."""

    def encode(texts: list[str]) -> np.ndarray:
        return np.stack(
            [
                WORDS[
                    [zlib.crc32(word.encode()) % len(WORDS) for word in re.findall(r"\S+", text)]
                ].sum(0)
                for text in texts
            ]
        )

    return encode


class MiniLM:
    """all-MiniLM-L6-v2; texts of the data set "passages" are looked up, not embedded again."""

    def __init__(self, rows: int):
        from retrieval import Encoder

        self._encoder = Encoder.from_hf(samples.fetch("minilm"))
        self.fingerprint = self._encoder.fingerprint
        self._known: dict[str, np.ndarray] = {}
        if rows:
            self._known = dict(zip(indexed(rows), vectors.load("passages", rows)[0], strict=True))

    def __call__(self, texts: list[str]) -> np.ndarray:
        if all(text in self._known for text in texts):
            return np.stack([self._known[text] for text in texts])
        return self._encoder(texts)


ENCODERS = {"toy encoder, 128": toy, "MiniLM, 384": MiniLM}


def indexed(rows: int) -> list[str]:
    """Texts of the vectors of "passages", without the queries."""
    return vectors.passages(vectors.QUERIES + rows)[vectors.QUERIES :]


def create(encoder: str, rows: int, folder: str) -> dict:
    from retrieval import Memory, Passage

    facts = Path(folder) / "benchmark.json"
    if facts.exists():
        return json.loads(facts.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    texts, encode = indexed(rows), ENCODERS[encoder](rows)
    began = time.perf_counter()
    memory = Memory.create(folder, encode)
    memory.add([Passage(str(row), text) for row, text in enumerate(texts)], reason="benchmark")
    memory.search(texts[:1])
    found = {"build_s": time.perf_counter() - began, "build_peak_mb": peak_mb()}
    facts.write_text(json.dumps(found))
    return found


def edits(encoder: str, folder: str, number: int) -> dict:
    """Open a memory and edit passages one at a time, searching at once for each new text."""
    from retrieval import Memory

    encode = ENCODERS[encoder](0)
    texts = [f"{text}, round {number}" for text in vectors.passages(EDITS)]
    encode(texts[:1])
    began = time.perf_counter()
    memory = Memory.open(folder, encode)
    opened = time.perf_counter()
    memory.search(texts[:1], k=10)
    ready = time.perf_counter()
    size, visible, searches = len(memory), [], []
    for edit, row in enumerate(np.random.default_rng(number).choice(size, EDITS, replace=False)):
        start = time.perf_counter()
        memory.edit(str(row), texts[edit])
        called = time.perf_counter()
        hits = memory.search([texts[edit]], k=10)[0]
        end = time.perf_counter()
        if hits[0].id != str(row) or hits[0].text != texts[edit]:
            raise AssertionError(f"an edit was not visible: {hits[0]}")
        visible.append(1000 * (end - start))
        searches.append(1000 * (end - called))
    return {
        "open_s": opened - began,
        "ready_s": ready - began,
        "edit_ms": float(np.median(visible)),
        "edit_p95_ms": float(np.percentile(visible, 95)),
        "search_ms": float(np.median(searches)),
        "process_mb": resident_mb(),
        "peak_mb": peak_mb(),
    }


JOBS = {"create": create, "edits": edits}
