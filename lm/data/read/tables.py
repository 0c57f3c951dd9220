"""Random access to the records of a source, by number.

TensorFlow is not imported, and no data set's own code is run. TFDS data sets are read from
TFDS_DATA_DIR (or ~/tensorflow_datasets). They must be prepared in the format array_record, which
does not need TensorFlow.
"""

import bisect
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.data.read import sources
from lm.data.read.files import is_packed
from lm.data.read.sources import DataError


class _Lines(Sequence):
    """Non-empty lines of a JSONL file. Their offsets are indexed once, when it is opened."""

    def __init__(self, file: str):
        if is_packed(file) or "://" in file:
            raise DataError(
                f"{file}: lines of a packed or remote file cannot be read at random; copy it "
                "here and unpack it"
            )
        self._file, self._at, at = file, [], 0
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    self._at.append((at, number))
                at += len(line)

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, index):
        at, number = self._at[index]
        with open(self._file, "rb") as f:
            f.seek(at)
            row = sources.parse(f.readline(), f"{self._file}, line {number}")
        if row.problem:
            raise DataError(f"{row.where}: {row.problem}")
        return row.value


class _Parquet(Sequence):
    """Rows of a Parquet file, with one row group in memory at a time."""

    def __init__(self, file: str):
        import pyarrow
        from pyarrow import parquet

        self._name, self._errors = file, (pyarrow.ArrowException, OSError)
        try:
            self._file = parquet.ParquetFile(sources.open_bytes(file))
        except self._errors as e:
            raise DataError(f"{file}: not a Parquet file ({_first(e)})") from None
        sizes = [
            self._file.metadata.row_group(i).num_rows
            for i in range(self._file.metadata.num_row_groups)
        ]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._group, self._rows = -1, []

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect.bisect_right(self._starts, index) - 1
        if group != self._group:
            try:
                self._rows = self._file.read_row_group(group).to_pylist()
            except self._errors as e:
                begins = self._starts[group] + 1
                raise DataError(
                    f"{self._name}, from row {begins} on: damaged ({_first(e)}); fetch it again"
                ) from None
            self._group = group
        return self._rows[index - self._starts[group]]


class _Plain(Sequence):
    """Data source whose numpy values and bytes are converted to JSON types."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        return _plain(self._source[index])


def open_table(file: str) -> Sequence[Any]:
    """Open a source for random access.

    JSONL, JSON, Parquet, tfds:NAME[/CONFIG][:SPLIT] or hf:NAME[:SPLIT]. Raises DataError for a text
    file, and for a compressed or remote JSONL file.
    """
    if file.startswith("tfds:"):
        return _Plain(_tfds(file)[1])
    if file.startswith("hf:"):
        return _Plain(_hf(file))
    if sources.kind(file) in sources.LINES:
        return _Lines(file)
    if sources.kind(file) == ".parquet":
        return _Parquet(file)
    if sources.kind(file) == ".json":
        return [row.value for row in sources.rows(file) if not row.problem]
    raise DataError(
        f"{file} has no records to read at random; expected .jsonl, .json, .parquet, tfds:NAME "
        "or hf:NAME"
    )


def fingerprint(name: str) -> str:
    """Fingerprint of a data set: TFDS's files and split, or that of Hugging Face's library."""
    if name.startswith("hf:"):
        return f"hf {_hf(name)._fingerprint}"
    builder, source = _tfds(name)
    total = hashlib.sha256(
        json.dumps([builder.info.full_name, _parts(name)[1], len(source)]).encode()
    )
    for file in sorted(builder.data_path.iterdir()):
        total.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _parts(name: str) -> tuple[str, str]:
    """(name, split) of tfds:NAME:SPLIT; the split may contain colons, as in train[:10%]."""
    name, _, split = name.partition(":")[2].partition(":")
    return name, split or "train"


def _tfds(source: str) -> tuple[Any, Any]:
    name, split = _parts(source)
    try:
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise DataError(
            f"{source} needs the package tensorflow-datasets ({e}): pip install tensorflow-datasets"
        ) from None
    try:
        builder: Any = tfds.builder(name)
    except Exception as e:  # TFDS has a class for each reason
        raise DataError(
            f"{source}: TFDS has no such data set, here or in its catalogue ({_first(e)})"
        ) from None
    prepare = f"tfds build {name.partition('/')[0]} --file_format=array_record"
    if not builder.data_path.exists():
        raise DataError(
            f"{source} is not prepared in {builder.data_path}: run `{prepare}` (and set "
            "TFDS_DATA_DIR to where it writes)"
        )
    try:
        return builder, builder.as_data_source(split=split)
    except NotImplementedError:
        raise DataError(
            f"{source} lies in {builder.data_path} in a format that only TensorFlow reads; "
            f"prepare it again with `{prepare}`"
        ) from None
    except ValueError as e:
        raise DataError(
            f"{source}: no split {split!r} ({_first(e)}); it has {', '.join(builder.info.splits)}"
        ) from None


def _hf(source: str) -> Any:
    name, split = _parts(source)
    try:
        import datasets  # ty: ignore[import-not-found]
    except ImportError:
        raise DataError(f"{source} needs the package datasets: pip install datasets") from None
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as e:  # errors of the library, the hub's client or a file format
        raise DataError(
            f"{source}: the data set cannot be loaded ({type(e).__name__}: {_first(e)})"
        ) from None


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(x) for x in value]
    return value.item() if isinstance(value, np.generic) else value
