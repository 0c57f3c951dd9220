"""A map of the memory: its vectors on their two widest axes (principal component analysis)."""

import dataclasses
from collections import Counter
from collections.abc import Collection

import numpy as np

from retrieval.memory import Memory
from retrieval.passages import Passage

POINTS = 3000
COLOURS = 6  # the most frequent kinds; the rest share a grey


@dataclasses.dataclass(frozen=True)
class Point:
    """x, y in [0, 1]. colour: the place of its kind in the atlas's `kinds`, COLOURS for all others."""

    passage: Passage
    x: float
    y: float
    colour: int


@dataclasses.dataclass(frozen=True)
class Atlas:
    points: list[Point]
    kinds: list[str]
    size: int


def atlas(memory: Memory, wanted: Collection[str] = (), limit: int = POINTS) -> Atlas:
    """At most `limit` passages, drawn evenly and the same each time, and those of `wanted` that exist.

    A passage's kind is its first tag; where no passage drawn has one, its source.
    """
    ids = sorted(memory.ids())
    chosen = {ids[i] for i in np.linspace(0, len(ids) - 1, min(limit, len(ids)), dtype=int)} | set(
        ids
    ).intersection(wanted)
    passages, vectors = memory.vectors(chosen)
    tagged = any(passage.tags for passage in passages.values())
    kind = lambda passage: (passage.tags[0] if passage.tags else "") if tagged else passage.source
    counted = Counter(kind(passage) for passage in passages.values())
    kinds = [
        name for name, _ in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])) if name
    ][:COLOURS]
    places = {name: number for number, name in enumerate(kinds)}
    points = [
        Point(passage, float(x), float(y), places.get(kind(passage), COLOURS))
        for passage, (x, y) in zip(passages.values(), flat(vectors), strict=True)
    ]
    return Atlas(points, kinds if len(counted) > 1 else [], len(ids))


def flat(vectors: np.ndarray) -> np.ndarray:
    """[N, D] -> [N, 2] in [0, 1]: the two widest axes, each with its largest entry positive, stretched over its middle 98 %."""
    if not len(vectors):
        return np.zeros((0, 2))
    centred = vectors - vectors.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    found = centred @ (axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]))
    found = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    low, high = np.percentile(found, [1, 99], axis=0)
    return np.clip((found - low) / np.where(high > low, high - low, 1), 0, 1)
