"""Data sets of the index benchmark: two from real models and texts, cached, and one drawn.

passages    200,000 x 384: all-MiniLM-L6-v2 of every 10 words of the State of the Union speeches
            from 1790 to 2026
tokens      120,000 x 576: last hidden states of SmolLM2-135M at tokens of the same speeches, the
            keys of a kNN-LM
clusters    200,000 x 128: a mixture of 1,000 Gaussians, each of 24 dimensions

All rows have length 1. The queries are 1,000 more rows, drawn first. A file name contains a
checksum of how the file was made.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from lm.data import samples

QUERIES, K = 1000, 10
WORDS = 10
BLOCK, SKIPPED = 256, 16  # tokens; hidden states at the start of a block are nearly constant
PART = 960  # rows computed at a time; a whole number of blocks


def cache() -> Path:
    folder = (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        / "openbook"
        / "benchmarks"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load(name: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Load (float32 [rows, D], queries float32 [QUERIES, D]), or the first part of a data set.

    A missing data set is made first.
    """
    size, make, facts = SETS[name]
    both = _kept(name, size + QUERIES, make, facts) if facts else make(size + QUERIES)
    if rows > size:
        raise ValueError(f"{name} has {size:,} vectors, not {rows:,}")
    return _unit(both[QUERIES : QUERIES + rows]), _unit(both[:QUERIES])


def nearest(base: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Row numbers of the K largest cosines, best first."""
    found = []
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ base.T
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, 1))
    return np.concatenate(found)


def passages(count: int | None = None) -> list[str]:
    """Every 10 words of the speeches, without duplicates, in a fixed random order."""
    texts = []
    for words in (text.split() for text in _speeches()):
        texts += [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS + 1, WORDS)]
    texts = list(dict.fromkeys(texts))
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:count]]


def _speeches() -> list[str]:
    return [
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(samples.fetch("speeches").glob("*.txt"))
    ]


def _passages(count: int):
    """start -> float32 [PART, 384], the rows from `start` on."""
    from retrieval import Encoder

    encoder, texts = Encoder.from_hf(samples.fetch("minilm")), passages(count)
    return lambda start: encoder(texts[start : start + PART])


def _tokens(count: int):
    """start -> float32 [PART, 576], the rows from `start` on."""
    import jax

    import lm

    path = samples.fetch("smollm2")
    model, params = lm.from_hf(path)
    tokenizer = lm.load_tokenizer(path)
    rows = [tokenizer(text)["input_ids"] for text in _speeches()]
    blocks = np.array(
        [row[i : i + BLOCK] for row in rows for i in range(0, len(row) - BLOCK + 1, BLOCK)],
        np.int32,
    )
    blocks = blocks[np.random.default_rng(0).permutation(len(blocks))]
    hidden = jax.jit(
        lambda params, batch: model.apply({"params": params}, batch, method="hidden").hidden
    )
    kept = BLOCK - SKIPPED

    def part(start):
        batch = lm.Batch.of(blocks[start // kept : (start + PART) // kept])
        return np.asarray(hidden(params, batch), np.float32)[:, SKIPPED:].reshape(PART, -1)

    return part


def clusters(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, 128)).astype(np.float32)
    spread = rng.normal(size=(1000, 24, 128)).astype(np.float32) / 24**0.5
    which = rng.integers(0, 1000, count)
    inside = rng.normal(size=(count, 24)).astype(np.float32)
    return np.stack([centres[c] + x @ spread[c] for c, x in zip(which, inside, strict=True)])


SPEECHES = samples.SAMPLES["speeches"].sha256
SETS = {
    "passages": (200_000, _passages, ["minilm", samples.SAMPLES["minilm"].sha256, SPEECHES, WORDS]),
    "tokens": (
        120_000,
        _tokens,
        ["smollm2", samples.SAMPLES["smollm2"].sha256, SPEECHES, BLOCK, SKIPPED],
    ),
    "clusters": (200_000, clusters, []),
}


def _kept(name: str, count: int, make, facts: list) -> np.ndarray:
    """float16 [count, D] from the cache, made if missing; an interrupted run is continued."""
    stem = f"{name}-{hashlib.sha256(json.dumps([*facts, count]).encode()).hexdigest()[:12]}"
    done, partial = cache() / f"{stem}.npy", cache() / f"{stem}.partial.npy"
    if done.exists():
        return np.load(done, mmap_mode="r", allow_pickle=False)
    part = make(count)
    if partial.exists():
        rows = np.lib.format.open_memmap(partial, mode="r+")
    else:
        rows = np.lib.format.open_memmap(
            partial, mode="w+", dtype=np.float16, shape=(count, part(0).shape[1])
        )
    began, at = time.monotonic(), int(np.count_nonzero(rows.any(axis=1))) // PART * PART
    first = at
    for start in range(at, count, PART):
        end = min(start + PART, count)
        rows[start:end] = part(start)[: end - start]
        left = (time.monotonic() - began) / (end - first) * (count - end)
        print(
            f"\r{name}: {end:,} of {count:,} vectors, {left:.0f} s left ",
            end="",
            file=sys.stderr,
            flush=True,
        )
    print(file=sys.stderr)
    rows.flush()
    os.replace(partial, done)
    return np.load(done, mmap_mode="r", allow_pickle=False)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
