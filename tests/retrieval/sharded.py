"""One process of test_index_sharded.py.

python -m tests.retrieval.sharded RANK PROCESSES PORT FOLDER
"""

import sys

import jax
import numpy as np

from retrieval import ExactIndex, RetrievalError, ScannIndex
from retrieval.index.sharded import ShardedIndex
from tests.retrieval.index.test_index import clustered, names

RANK, PROCESSES, PORT = map(int, sys.argv[1:4])


class Broken:
    """A shard that raises unexpected errors."""

    def __init__(self, shard):
        self._shard = shard

    def search(self, queries, k):
        raise KeyError("not here")

    @classmethod
    def build(cls, vectors, ids):
        raise KeyError("not here")


def refused(call, *words):
    try:
        call()
    except RetrievalError as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"not refused: {words}")


def check(kind, folder):
    vectors, ids = clustered(700), names(700)
    mine = lambda items: items[RANK::PROCESSES]
    one, sharded = (
        ExactIndex.build(vectors[:500], ids[:500]),
        ShardedIndex.build(mine(vectors[:500]), mine(ids[:500]), kind),
    )
    one.upsert(vectors[450:], ids[450:])
    sharded.upsert(mine(vectors[450:]), mine(ids[450:]))
    one.delete(ids[10:60])
    sharded.delete(mine(ids[10:60]))
    assert (
        len(sharded) == len(one) == 650
        and 0 < len(sharded._shard) < 650
        and "v5" in sharded
        and "v12" not in sharded
    )
    assert sharded.health()["size"] == 650 and len(sharded.health()["shards"]) == PROCESSES

    def same(index):
        # Each process has a different number of queries; rank 0 has none.
        queries = clustered(3 + 4 * RANK, seed=RANK)[: None if RANK else 0]
        for k in (1, 10, 900):
            (found, scores), (right, right_scores) = (
                index.search(queries, k),
                one.search(queries, k),
            )
            assert found == right and all(
                np.allclose(a, b, atol=1e-5) for a, b in zip(scores, right_scores, strict=True)
            )

    def same_numbers(numbers):
        ids, scores = numbers.search(clustered(3, seed=RANK), 700)
        named, right = one.search(clustered(3, seed=RANK), 700)
        assert (
            ids.dtype == np.int64
            and scores.dtype == np.float32
            and ids.tolist() == [[int(id[1:]) for id in row] for row in named]
        )
        assert np.allclose(scores, right, atol=1e-5) and numbers.search(np.zeros((0, 64)), 3)[
            0
        ].shape == (0, 3)

    same(sharded)
    own = mine(np.arange(700)) if RANK else []  # rank 0 has no ids, so not their kind either
    numbers = ShardedIndex.build(vectors[own], own, kind)
    numbers.upsert(
        vectors[::PROCESSES] if RANK == 0 else vectors[:0],
        np.arange(0, 700, PROCESSES) if RANK == 0 else [],
    )
    numbers.delete(mine(np.arange(10, 60)))
    same_numbers(numbers)
    refused(lambda: numbers.upsert(clustered(1), ["7"]), "'7'", "whole numbers")
    refused(lambda: numbers.delete([5, 12_345] if RANK else []), "12345")
    numbers.save(f"{folder}-numbers")
    same_numbers(ShardedIndex.load(f"{folder}-numbers", kind)[0])
    refused(lambda: sharded.delete(["v1", "unknown"] if RANK else []), "unknown")
    refused(
        lambda: sharded.upsert(np.full((1, 64), np.nan if RANK else 1.0), [f"new{RANK}"]),
        "process 1",
        "NaN",
    )
    refused(lambda: sharded.upsert(clustered(1), ["same"]), "same")
    refused(lambda: sharded.search(clustered(1), 1 + RANK), "k differs")
    refused(lambda: sharded.delete(None if RANK == 1 else []), "process 1", "None")
    refused(
        lambda: sharded.upsert(clustered(1), 5 if RANK == 1 else [f"new{RANK}"]), "process 1", "5"
    )
    refused(
        lambda: sharded.save(folder, wrong=np.float32(1) if RANK == 1 else 1),
        "process 1",
        "float32",
    )
    refused(
        lambda: ShardedIndex.build(clustered(1), [f"new{RANK}"], Broken if RANK == 1 else kind),
        "process 1",
        "not here",
    )
    sharded._shard, whole = Broken(sharded._shard) if RANK == 1 else sharded._shard, sharded._shard
    refused(lambda: sharded.search(clustered(1), 1), "process 1", "not here")
    sharded._shard = whole
    same(sharded)
    sharded.save(folder, store_version=3)
    same(ShardedIndex.load(folder, kind)[0])
    sharded._shard.save(f"{folder}/shard-{RANK:04d}", shards=PROCESSES, store_version=4 + RANK)
    refused(lambda: ShardedIndex.load(folder, kind), "not by all at once")


jax.distributed.initialize(f"127.0.0.1:{PORT}", PROCESSES, RANK)
check(ExactIndex, f"{sys.argv[4]}/exact")
check(ScannIndex, f"{sys.argv[4]}/scann")
print("all the same")
