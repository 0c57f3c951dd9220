"""Duplicates: texts equal but for case, encoding (see `words.plain`) and spaces, and near ones by MinHash (Broder 1997).

Two texts are near when the Jaccard similarity of their sets of five successive words is at least 0.8. Candidates share one of BANDS bands
of ROWS minima of random hashes (locality-sensitive hashing; Leskovec, Rajaraman & Ullman 2020, section 3.4): a pair of similarity s does
with probability 1 - (1 - s^6)^32, which is 0.9999 at 0.8. Each candidate is then measured, so none is reported that is not near.
"""

import hashlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrieval.words import SEAM, asked, plain

NEAR = 0.8
SHINGLE = 5  # words
BANDS, ROWS = 32, 6
WINDOW = 32  # earlier texts of a band that one is compared with: bounds the work on texts made from one template


class Duplicate(NamedTuple):
    """Text number `index` repeats the earlier one `of`. similarity: Jaccard, in [NEAR, 1]; exact: equal when normalised."""

    index: int
    of: int
    similarity: float
    exact: bool


def find(texts: Sequence[str]) -> list[Duplicate]:
    """What repeats an earlier text that repeats none itself, in order of index: leaving these out leaves no pair that was found."""
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
    copies = {
        i: near[d.of]._replace(index=i) if d.of in near else d for i, d in same.items()
    }  # of one that is left out itself
    return [found for _, found in sorted((near | copies).items())]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sorted arrays of distinct values: |a and b| / |a or b|."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def shingled(text: str) -> np.ndarray:
    """uint64 [n], sorted, distinct: hashes of every five successive words; of all words when there are fewer."""
    hashes = np.array([_word(word) for word in asked(text) or [text]], np.uint64)
    length = min(SHINGLE, len(hashes))
    total = np.zeros(len(hashes) - length + 1, np.uint64)
    for i in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[i : i + len(total)]
    return np.unique(total ^ (total >> np.uint64(29)))


def signatures(shingles: Sequence[np.ndarray]) -> np.ndarray:
    """uint32 [N, BANDS * ROWS]: of each set its minimum under as many random hashes, x -> (a x + b mod 2^64) / 2^32 with odd a."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2**64, BANDS * ROWS, np.uint64) | np.uint64(1)
    b = rng.integers(0, 2**64, BANDS * ROWS, np.uint64)
    found = np.empty((len(shingles), BANDS * ROWS), np.uint32)
    for i, values in enumerate(shingles):
        found[i] = ((values[:, None] * a + b) >> np.uint64(32)).min(axis=0)
    return found


def candidates(shingles: Sequence[np.ndarray]) -> set[tuple[int, int]]:
    """Pairs (earlier, later) that share a band, and whose signatures do not speak against their being near."""
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
            alike = (all_minima[earlier] == all_minima[later]).mean(
                axis=1
            ) >= NEAR - 0.15  # five standard deviations
            pairs.update(zip(earlier[alike].tolist(), later[alike].tolist(), strict=True))
    return pairs


def digest(text: str) -> bytes:
    """Equal for texts that are equal but for case, encoding and spaces."""
    return hashlib.sha256(" ".join(plain(text).replace(SEAM, "").split()).encode()).digest()


def _word(word: str) -> int:
    return zlib.crc32(word.encode())
