"""ShardedIndex: one index over the processes of a JAX run, partitioned by a hash of the ids."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from retrieval.errors import RetrievalError
from retrieval.index.approximate import default_index
from retrieval.index.index import Index
from retrieval.index.vectors import Ids, check_ids, check_k, unit_rows, whole
from retrieval.passages import listed

# Manifest entries that must be equal in all shards.
OF_ONE_HISTORY = ("shards", "dim", "store_version", "state", "fingerprint")


class ShardedIndex:
    """An index whose shards live in different processes; it answers like a single index.

    All processes must call each method except `len` together, in the same order, each with its own
    part: its queries, its vectors, the ids it removes. A part may be empty. An error in one process
    is raised in all.
    """

    def __init__(self, shard: Index):
        self._shard, self.dim, self.numbers = shard, shard.dim, shard.numbers
        self._count()

    @classmethod
    def build(cls, vectors, ids: Ids, kind: type[Index] | None = None) -> "ShardedIndex":
        """Build the index from the vectors of all processes.

        kind: class of a shard; by default ScannIndex where ScaNN runs.
        """
        vectors = _agreed(lambda: unit_rows(vectors, None))
        if len(dims := set(_told(vectors.shape[1]))) > 1:
            raise RetrievalError(
                f"vectors have {listed(sorted(map(str, dims)))} dimensions on different "
                "processes: expected one number"
            )
        numbers = any(_told(whole(ids)))  # an empty part may be any list
        vectors, ids = _routed(vectors, ids, numbers)
        return cls(
            _agreed(
                lambda: (kind or default_index()).build(
                    vectors, np.array(ids, np.int64) if numbers else ids
                )
            )
        )

    def __len__(self):
        return self._size

    def __contains__(self, id: str | int) -> bool:
        return any(_told(id in self._shard))

    def search(self, queries, k: int):
        k, queries = _agreed(lambda: (check_k(k), unit_rows(queries, self.dim, "queries")))
        if len(set(_told(k))) > 1:
            raise RetrievalError("k differs between processes: every process asks for as many")
        parts = _gathered(queries)
        found = _agreed(lambda: self._shard.search(np.concatenate(parts), k))
        k = min(k, len(self))
        first = sum(map(len, parts[: jax.process_index()]))
        ids, scores = (every[first : first + len(queries)] for every in self._of_all(*found, k))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        ids, scores = np.take_along_axis(ids, best, 1), np.take_along_axis(scores, best, 1)
        return (ids, scores) if self.numbers else (ids.tolist(), list(scores))

    def _of_all(self, ids, scores, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Gather the results of all shards: ids and scores [Q, processes * k].

        Each shard has at most k results per query; missing ones score -inf.
        """
        shape, none = (len(scores), k), 0 if self.numbers else None
        held, near = (
            np.full(shape, none, np.int64 if self.numbers else object),
            np.full(shape, -np.inf, np.float32),
        )
        for row, (names, own) in enumerate(zip(ids, scores, strict=True)):
            held[row, : len(own)], near[row, : len(own)] = names, own
        if self.numbers:  # as uint32 halves: JAX has no int64 by default
            parts = [part.view(np.int64) for part in _gathered(held.view(np.uint32))]
        else:
            parts = [np.array(part, object).reshape(shape) for part in _told(held.tolist())]
        return np.concatenate(parts, axis=1), np.concatenate(_gathered(near), axis=1)

    def upsert(self, vectors, ids: Ids) -> None:
        mine = _routed(_agreed(lambda: unit_rows(vectors, self.dim)), ids, self.numbers)
        _agreed(lambda: self._shard.upsert(*mine))
        self._count()

    def delete(self, ids: Ids) -> None:
        ids = [
            id
            for part in _told(_agreed(lambda: check_ids(ids, numbers=self.numbers)))
            for id in part
        ]
        mine = [
            id for id in check_ids(ids, len(ids), self.numbers) if _owner(id) == jax.process_index()
        ]
        if unknown := [
            id for part in _told([id for id in mine if id not in self._shard]) for id in part
        ]:
            raise RetrievalError(f"not in the index: {listed(unknown)}: nothing was changed")
        _agreed(lambda: self._shard.delete(mine))
        self._count()

    def save(self, directory, **facts) -> None:
        """Save each process's shard in `directory`, which all processes share."""
        _agreed(lambda: self._shard.save(_place(directory), shards=jax.process_count(), **facts))

    @classmethod
    def load(cls, directory, kind: type[Index] | None = None) -> tuple["ShardedIndex", dict]:
        """Return (index, manifest of this process's shard).

        Raises RetrievalError unless as many processes load it as saved it.
        """
        shard, manifest = _agreed(lambda: (kind or default_index()).load(_place(directory)))
        told = _told({name: manifest.get(name) for name in OF_ONE_HISTORY})
        if told[0]["shards"] != jax.process_count() or any(facts != told[0] for facts in told):
            raise RetrievalError(
                f"{directory} was saved by {told[0]['shards']} processes, or not by all at once; "
                f"here are {jax.process_count()}: build the index again"
            )
        return cls(shard), manifest

    def health(self) -> dict:
        """Return kind, size, the health of every shard and the lowest recall among them."""
        shards = _told(self._shard.health())
        return {
            "kind": "sharded",
            "size": len(self),
            "shards": shards,
            "recall": min(shard["recall"] for shard in shards),
        }

    def _count(self) -> None:
        self._size = sum(_told(len(self._shard)))


def _place(directory) -> Path:
    return Path(directory) / f"shard-{jax.process_index():04d}"


def _owner(id: str | int) -> int:
    return zlib.crc32(str(id).encode()) % jax.process_count()


def _routed(vectors: np.ndarray, ids: Ids, numbers: bool) -> tuple[np.ndarray, list]:
    """Return the vectors and ids, from all processes, that belong to this one."""
    parts = _told(_agreed(lambda: check_ids(ids, len(vectors), numbers)))
    every = [id for part in parts for id in part]
    check_ids(every, len(every), numbers)  # finds ids repeated across processes
    mine = [row for row, id in enumerate(every) if _owner(id) == jax.process_index()]
    return np.concatenate(_gathered(vectors))[mine], [every[row] for row in mine]


def _agreed(do: Callable[[], Any]) -> Any:
    """Return do(); if it fails in one process, raise in all, so that none waits for it."""
    done, error = None, ""
    try:
        done = do()
    except Exception as failure:  # the other processes wait, whatever it is
        error = (
            str(failure)
            if isinstance(failure, RetrievalError) and str(failure)
            else f"{type(failure).__name__}: {failure}"
        )
    for process, message in enumerate(_told(error)):
        if message:
            raise RetrievalError(f"process {process}: {message}")
    return done


def _told(value: Any) -> list[Any]:
    """Gather a JSON value from every process."""
    return [
        json.loads(part.tobytes())
        for part in _gathered(np.frombuffer(json.dumps(value).encode(), np.uint8))
    ]


def _gathered(rows: np.ndarray) -> list[np.ndarray]:
    """Gather rows [N, ...] from every process; N may differ."""
    counts = np.reshape(multihost_utils.process_allgather(np.array([len(rows)])), -1)
    padded = np.zeros((max(1, counts.max()), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    every = np.reshape(multihost_utils.process_allgather(padded), (len(counts), *padded.shape))
    return [part[:count] for part, count in zip(every, counts, strict=True)]
