"""Batches: packed rows as sharded arrays. The global batch of a step is a function of (seed, step), whatever the number of hosts."""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from lm.batch import Batch
from lm.data.packing import Packed


class Rows:
    """Packed rows, read one at a time: the random-access source grain shuffles."""

    def __init__(self, packed: Packed):
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        p = self._packed
        return {"tokens": p.tokens[row], "targets": p.targets[row], "segments": p.segments[row]}

    def __repr__(self) -> str:
        return f"Rows({len(self)} x {self._packed.length})"


class TrainBatches:
    """An endless iterator of global batches [batch_size, T]; every epoch is shuffled anew from `seed`.

    Each process reads only the rows its devices hold. `state()` is JSON, equal on all processes and for any number of them.
    """

    def __init__(self, packed: Packed, batch_size: int, seed: int, sharding: NamedSharding, length: int | None = None):
        self._shape = (batch_size, packed.length)
        self._sharding = sharding
        self._rows = _local_rows(sharding, self._shape)
        rows: Any = Rows(packed)
        shuffled: Any = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()

        def read(step: int) -> dict[str, np.ndarray]:
            return _stack([shuffled[int(step) * batch_size + int(row)] for row in self._rows])

        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        self._iterator = iter(grain.MapDataset.range(2**48 if length is None else length).map(read).to_iter_dataset(options))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return _globalise(next(self._iterator), self._rows, self._shape, self._sharding)

    def state(self) -> dict:
        """Where the iterator stands, for a checkpoint."""
        return self._iterator.get_state()

    def restore(self, state: dict) -> None:
        """Continues from a `state()`."""
        self._iterator.set_state(state)


def in_order(packed: Packed, batch_size: int, sharding: NamedSharding, limit: int | None = None) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers int [batch_size], batch) over the rows once, in order; the last batch is filled with empty rows, numbered -1."""
    shape = (batch_size, packed.length)
    mine = _local_rows(sharding, shape)
    total = len(packed) if limit is None else min(limit, len(packed))
    source = Rows(packed)
    empty = {name: np.zeros_like(value) for name, value in source[0].items()}
    for start in range(0, total, batch_size):
        numbers = np.arange(start, start + batch_size)
        numbers[numbers >= total] = -1
        local = _stack([empty if numbers[row] < 0 else source[int(numbers[row])] for row in mine])
        yield numbers, _globalise(local, mine, shape, sharding)


def positions_of(segments: np.ndarray) -> np.ndarray:
    """Positions within each document, int32 [B, T], from segment ids [B, T]."""
    index = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    starts = np.concatenate([np.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    tokens, targets, segments = (np.stack([row[name] for row in rows]).astype(np.int32) for name in ("tokens", "targets", "segments"))
    weights = (segments > 0).astype(np.float32)
    return {"tokens": tokens, "targets": targets, "weights": weights, "segments": segments, "positions": positions_of(segments)}


def _local_rows(sharding: NamedSharding, shape: tuple[int, int]) -> np.ndarray:
    """Which rows of the global batch this process's devices hold, ascending."""
    held = (range(shape[0])[index[0]] for index in sharding.addressable_devices_indices_map(shape).values() if index)
    return np.unique(np.concatenate([np.asarray(rows) for rows in held]))


def _globalise(local: dict[str, np.ndarray], rows: np.ndarray, shape: tuple[int, int], sharding: NamedSharding) -> Batch:
    def of(name: str) -> jax.Array:
        def piece(index):
            wanted = np.arange(shape[0])[index[0]]
            return local[name][np.searchsorted(rows, wanted)][:, index[1]]

        return jax.make_array_from_callback(shape, sharding, piece)

    return Batch(**{name: of(name) for name in local})
