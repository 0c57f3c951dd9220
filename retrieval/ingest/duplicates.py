"""Duplicate detection: exact up to case, encoding and spaces; near duplicates by MinHash (Broder
1997).

Two texts are near duplicates when the Jaccard similarity of their sets of five successive words is
at least 0.8. Candidates share one of BANDS bands of ROWS minima of random hashes
(locality-sensitive hashing; Leskovec, Rajaraman & Ullman 2020, section 3.4). A pair of similarity s
does so with probability 1 - (1 - s^6)^32, which is 0.9999 at 0.8. Each candidate is then measured,
so there are no false positives.
"""

import hashlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrieval.store.words import SEAM, asked, plain

NEAR = 0.8
SHINGLE = 5  # words
BANDS, ROWS = 32, 6
WINDOW = 32  # earlier texts of a band to compare with: bounds the work on templated texts


class Duplicate(NamedTuple):
    """Text number `index` repeats the earlier text number `of`.

    similarity: Jaccard, in [NEAR, 1]. exact: equal when normalised.
    """

    index: int
    of: int
    similarity: float
    exact: bool


def find(texts: Sequence[str]) -> list[Duplicate]:
    """Return the texts that repeat an earlier text, which repeats none itself, by index.

    Without the returned texts, no detected pair is left.
    """
    first: dict[bytes, int] = {}
    same = {}
    for i, text in enumerate(texts):
        if (of := first.setdefault(digest(text), i)) != i:
            same[i] = Duplicate(i, of, 1.0, True)
    alone = list(first.values())
    shingles = [shingled(texts[i]) for i in alone]
    near: dict[int, Duplicate] = {}
    for b, a in sorted((b, a) for a, b in candidates(shingles)):
        if (
            alone[a] not in near
            and alone[b] not in near
            and (similarity := jaccard(shingles[a], shingles[b])) >= NEAR
        ):
            near[alone[b]] = Duplicate(alone[b], alone[a], similarity, False)
    # An exact copy of a near duplicate repeats what that one repeats.
    copies = {i: near[d.of]._replace(index=i) if d.of in near else d for i, d in same.items()}
    return [found for _, found in sorted((near | copies).items())]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return |a and b| / |a or b| of two sorted arrays of distinct values."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def shingled(text: str) -> np.ndarray:
    """Hash every five successive words (all words if fewer): uint64 [n], sorted, distinct."""
    hashes = np.array([_word(word) for word in asked(text) or [text]], np.uint64)
    length = min(SHINGLE, len(hashes))
    total = np.zeros(len(hashes) - length + 1, np.uint64)
    for i in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[i : i + len(total)]
    return np.unique(total ^ (total >> np.uint64(29)))


def signatures(shingles: Sequence[np.ndarray]) -> np.ndarray:
    """Return MinHash signatures, uint32 [N, BANDS * ROWS].

    Each entry is the minimum of a set under x -> (a x + b mod 2^64) / 2^32 with random odd a.
    """
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2**64, BANDS * ROWS, np.uint64) | np.uint64(1)
    b = rng.integers(0, 2**64, BANDS * ROWS, np.uint64)
    found = np.empty((len(shingles), BANDS * ROWS), np.uint32)
    for i, values in enumerate(shingles):
        found[i] = ((values[:, None] * a + b) >> np.uint64(32)).min(axis=0)
    return found


def candidates(shingles: Sequence[np.ndarray]) -> set[tuple[int, int]]:
    """Return pairs (earlier, later) that share a band and whose signatures are similar enough."""
    all_minima, pairs = signatures(shingles), set()
    for band in range(BANDS):
        minima = (
            np.ascontiguousarray(all_minima[:, band * ROWS : (band + 1) * ROWS])
            .view(f"V{4 * ROWS}")
            .ravel()
        )
        _, key = np.unique(minima, return_inverse=True)
        order = np.argsort(key, kind="stable")
        key = key[order]
        for back in range(1, WINDOW + 1):
            at = np.flatnonzero(key[back:] == key[:-back])
            if not len(at):
                break
            earlier, later = order[at], order[at + back]
            # 0.15: about five standard deviations.
            alike = (all_minima[earlier] == all_minima[later]).mean(axis=1) >= NEAR - 0.15
            pairs.update(zip(earlier[alike].tolist(), later[alike].tolist(), strict=True))
    return pairs


def digest(text: str) -> bytes:
    """Hash a text; texts equal up to case, encoding and spaces have the same hash."""
    return hashlib.sha256(" ".join(plain(text).replace(SEAM, "").split()).encode()).digest()


def _word(word: str) -> int:
    return zlib.crc32(word.encode())
