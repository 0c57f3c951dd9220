"""Batches: packed rows as sharded arrays.

The global batch of a step is a function of (seed, step), whatever the number of hosts.

A task's transform (lm/tasks/task.py) computes a row's fields each time the row is
read. Its random generator is seeded with (seed, position in the endless stream) in training, and
with the row number alone in evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from lm.batch import FIELDS, Batch
from lm.data.packed import Packed
from lm.data.source import Carry, Source
from lm.distributed.sharding import field_sharding
from lm.models import inputs
from lm.models.config import ConfigError, ModelConfig, nearest

Lengths = tuple[int, int]  # (tokens of a row, tokens of its encoder row; 0 without an encoder)
SIDES = (
    ("tokens", "targets", "segments", "weights"),
    ("encoder_tokens", "encoder_segments"),
)  # names of the fields with each length


class Rows:
    """Random-access source over packed rows, which grain shuffles."""

    def __init__(self, packed: Packed):
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        p = self._packed
        return {"tokens": p.tokens[row], "targets": p.targets[row], "segments": p.segments[row]} | {
            n: x[row] for n, x in p.extra.items()
        }

    def __repr__(self) -> str:
        return f"Rows({len(self)} x {self._packed.length})"


class Stream(Protocol):
    """Endless sequence of rows: position -> fields of `lm.Batch`, already transformed.

    lengths: lengths of every row. `lm.data.mixtures.Mixture` is one implementation.
    """

    lengths: Lengths

    def __getitem__(self, place: int) -> dict[str, np.ndarray]: ...


def shuffled(packed: Packed, seed: int) -> Any:
    """Return the rows as an endless sequence, reshuffled every epoch."""
    rows: Any = Rows(packed)
    return grain.MapDataset.source(rows).seed(seed).shuffle().repeat()


class TrainBatches(Source):
    """Endless source of global batches [batch_size, T], read ahead of the step.

    Every epoch is reshuffled and transformed anew from `seed`. Each process reads only the rows
    that its devices hold. The position is the same on every process, for any number of processes.
    It counts rows, so a run with another batch size resumes at the same row.

    packed: packed rows, or a Stream, whose rows are already transformed.
    transform: applied to packed rows only.
    config: of the model. A batch with an id outside its embeddings raises ConfigError.
    lengths: (tokens of a row, tokens of its encoder row or 0).
    """

    def __init__(
        self,
        packed: Packed | Stream,
        batch_size: int,
        seed: int,
        sharding: NamedSharding,
        transform: Any = None,
        config: ModelConfig | None = None,
    ):
        self.lengths = lengths_of(packed, transform)
        self._batch_size, self._sharding = batch_size, sharding
        self._rows = local_rows(sharding, (batch_size, self.lengths[0]))
        self._stream = shuffled(packed, seed) if isinstance(packed, Packed) else packed
        self._seed, self._transform, self._config = seed, transform, config
        self._begin(0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self.next()

    def next(self, state: Any = None) -> Batch:
        batch = _globalise(next(self._iterator), self._rows, self._batch_size, self._sharding)
        self._read += self._batch_size
        return batch

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every field of a row, from the first one; nothing is consumed."""
        row = fields_of(self._stream[0], self._transform, self.lengths, (self._seed, 0))
        return {name: x.shape[1:] for name, x in _stack([row], self._config).items()}

    def position(self) -> dict:
        """The number of rows read."""
        return {"rows": self._read}

    def restore(self, position: dict, carry: Carry | None = None) -> None:
        """Resume from a position. Those of an earlier version count batches instead of rows."""
        counted = "rows" in position
        self._begin(position["rows"] if counted else position["next_index"] * self._batch_size)

    def _begin(self, first: int) -> None:
        self._read = first

        def read(step: int) -> dict[str, np.ndarray]:
            places = [first + int(step) * self._batch_size + int(row) for row in self._rows]
            return _stack(
                [
                    fields_of(self._stream[at], self._transform, self.lengths, (self._seed, at))
                    for at in places
                ],
                self._config,
            )

        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        self._iterator = iter(grain.MapDataset.range(2**48).map(read).to_iter_dataset(options))


def in_order(
    packed: Packed,
    batch_size: int,
    sharding: NamedSharding,
    limit: int | None = None,
    transform: Any = None,
    lengths: Lengths | None = None,
    config: ModelConfig | None = None,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield (row numbers int [batch_size], batch) over the rows once, in order.

    The last batch is padded with empty rows, numbered -1.
    lengths: of the transformed rows, if known; else computed from `packed`.
    config: as in `TrainBatches`.
    """
    mine = local_rows(sharding, (batch_size, packed.length))
    lengths = lengths_of(packed, transform) if lengths is None else lengths
    total = len(packed) if limit is None else min(limit, len(packed))
    source = Rows(packed)
    empty = {name: np.zeros_like(value) for name, value in source[0].items()}
    for start in range(0, total, batch_size):
        numbers = np.arange(start, start + batch_size)
        numbers[numbers >= total] = -1
        read = [
            (empty, 0) if numbers[row] < 0 else (source[int(numbers[row])], int(numbers[row]))
            for row in mine
        ]
        local = _stack(
            [fields_of(row, transform, lengths, (number,)) for row, number in read], config
        )
        yield numbers, _globalise(local, mine, batch_size, sharding)


def lengths_of(packed: Packed | Stream, transform: Any = None) -> Lengths:
    """Lengths of the rows after the transform."""
    if not isinstance(packed, Packed):
        return packed.lengths
    read = packed.extra["encoder_tokens"].shape[1] if "encoder_tokens" in packed.extra else 0
    return (packed.length, read) if transform is None else transform.lengths(packed)


def positions_of(segments: np.ndarray) -> np.ndarray:
    """Positions within each document, int32 [..., T], from segment ids [..., T]."""
    index = np.broadcast_to(np.arange(segments.shape[-1], dtype=np.int32), segments.shape)
    starts = np.ones(segments.shape, bool)
    starts[..., 1:] = segments[..., 1:] != segments[..., :-1]
    return index - np.maximum.accumulate(np.where(starts, index, 0), axis=-1)


def fields_of(
    row: dict[str, np.ndarray], transform: Any, lengths: Lengths, key: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Apply a transform to a packed row, with a generator seeded by `key`, and return the fields.

    Without a transform, only the field `weights` is added.
    """
    if transform is None:
        return {"weights": row["segments"] > 0} | row
    return transform.fields(row, np.random.default_rng(key), lengths)


def stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack rows of declared fields (`lm.batch.FIELDS`) to arrays of the declared dtypes.

    Raises ConfigError, naming the field, for one that is not declared, that some rows lack, whose
    shape differs between rows or has the wrong number of axes, or whose values the declared dtype
    cannot hold.
    """
    found = {}
    for name in sorted(set().union(*rows)):
        _check_declared(name)
        values = [np.asarray(row[name]) for row in rows if name in row]
        shapes = sorted({value.shape for value in values})
        if len(values) < len(rows) or len(shapes) > 1:
            raise ConfigError(
                f"the field {name!r} has the shapes {', '.join(map(str, shapes))} in {len(values)} "
                f"of {len(rows)} rows of a batch; expected one shape in every row"
            )
        array = np.stack(values)
        try:
            FIELDS[name].names(array.ndim)
        except ValueError as error:
            raise ConfigError(
                f"the field {name!r} of a row has shape {shapes[0]}: {error}"
            ) from None
        found[name] = cast(name, array)
    return found


def _check_declared(name: str) -> None:
    if name not in FIELDS:
        raise ConfigError(
            f"a row has the field {name!r}{nearest(name, FIELDS)}, which lm.batch.FIELDS does "
            f"not declare; expected some of {', '.join(FIELDS)}"
        )


def placed(batch: Batch, abstract: Batch, config: ModelConfig | None = None) -> Batch:
    """Put a whole batch of host arrays on the devices, with the dtypes and shardings of `abstract`.

    Raises ConfigError, naming the field, for other fields or shapes than those of `abstract`, for
    values that the declared dtype cannot hold, and as `inputs.check` does with `config`.
    """
    given, wanted = batch.fields(), abstract.fields()
    for name in sorted(given.keys() | wanted.keys()):
        _check_declared(name)
        shapes = [list(np.shape(of[name])) if name in of else "none" for of in (given, wanted)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"the field {name!r} of a batch has shape {shapes[0]}, expected {shapes[1]}"
            )
    host = {name: cast(name, np.asarray(values)) for name, values in given.items()}
    if config is not None:
        inputs.check(config, host, learned=True)
    return Batch.made(
        {
            name: jax.make_array_from_callback(
                values.shape, wanted[name].sharding, values.__getitem__
            )
            for name, values in host.items()
        }
    )


def cast(name: str, values: np.ndarray) -> np.ndarray:
    """Cast a field's values to its declared dtype; rounding to float32 is the only change allowed.

    Raises ConfigError for values that it cannot hold: fractions as integers, integers out of range
    or, as float32, above 2^24, and what is no number.
    """
    dtype = np.dtype(FIELDS[name].dtype)
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        new = values.astype(dtype) if values.dtype.kind in "biuf" else None
    exact = new is not None and (
        bool((np.isfinite(new) | ~np.isfinite(values)).all())
        if values.dtype.kind == dtype.kind == "f"
        else np.array_equal(new.astype(np.float64), values.astype(np.float64))
    )
    if new is None or not exact:
        shown = values.ravel() if new is None else values[_lost(new, values)]
        raise ConfigError(
            f"the field {name!r} is declared as {dtype.name}, which cannot hold values such as "
            f"{', '.join(map(repr, shown[:3].tolist()))} ({values.dtype}): another field, or "
            "another value"
        )
    return new


def _lost(new: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mask of the values that a cast changed."""
    if new.dtype.kind == values.dtype.kind == "f":
        return np.isfinite(values) & ~np.isfinite(new)
    return new.astype(np.float64) != values.astype(np.float64)


def _stack(rows: list[dict[str, np.ndarray]], config: ModelConfig | None) -> dict[str, np.ndarray]:
    fields = stacked(rows)
    for side in ("", "encoder_"):
        if f"{side}segments" in fields:
            fields[f"{side}positions"] = positions_of(fields[f"{side}segments"])
    if config is not None:
        inputs.check(config, fields, learned=True)
    return fields


def local_rows(sharding: NamedSharding, shape: tuple[int, int]) -> np.ndarray:
    """Rows of the global batch that this process's devices hold, ascending."""
    held = (
        range(shape[0])[index[0]]
        for index in sharding.addressable_devices_indices_map(shape).values()
        if index
    )
    return np.unique(np.concatenate([np.asarray(rows) for rows in held]))


def _globalise(
    local: dict[str, np.ndarray], rows: np.ndarray, batch_size: int, sharding: NamedSharding
) -> Batch:
    def of(name: str, values: np.ndarray) -> jax.Array:
        def piece(index):
            wanted = np.arange(batch_size)[index[0]]
            return values[np.searchsorted(rows, wanted)][:, *index[1:]]

        placed = field_sharding(sharding, name, values.ndim)
        return jax.make_array_from_callback((batch_size, *values.shape[1:]), placed, piece)

    return Batch.made({name: of(name, values) for name, values in local.items()})
