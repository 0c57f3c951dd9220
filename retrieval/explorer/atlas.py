"""A map of the memory: its vectors on their two principal axes (PCA)."""

import dataclasses
from collections import Counter
from collections.abc import Collection

import numpy as np

from retrieval.memory import Memory
from retrieval.passages import Passage

POINTS = 3000
COLOURS = 6  # for the most frequent kinds; the rest are grey


@dataclasses.dataclass(frozen=True)
class Point:
    """A passage on the map, x and y in [0, 1].

    colour: the index of its kind in `Atlas.kinds`, COLOURS for all others.
    """

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
    """Map at most `limit` passages, sampled evenly and deterministically, and those of `wanted`.

    A passage's kind is its first tag, or its source where no mapped passage has a tag.
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
    """Project [N, D] to [N, 2] in [0, 1]: the two principal axes.

    The largest entry of each axis is made positive; coordinates are scaled to the middle 98 %.
    """
    if not len(vectors):
        return np.zeros((0, 2))
    centred = vectors - vectors.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    found = centred @ (axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]))
    found = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    low, high = np.percentile(found, [1, 99], axis=0)
    return np.clip((found - low) / np.where(high > low, high - low, 1), 0, 1)
