"""Input checks shared by every index, and the on-disk format of an index."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.passages import check_id, items, listed

MANIFEST = "manifest.json"
IDS = "ids.json"
UNFINISHED = ".unfinished-"
Ids = Sequence[str] | Sequence[int] | np.ndarray  # strings, or integers [N]
SMALLEST = 1e-30  # least squared length of a row that float32 holds at full precision


def unit_rows(
    vectors, dim: int | None, what: str = "vectors", of: Sequence[str] = ()
) -> np.ndarray:
    """Return float32 [N, D], C-ordered, each row scaled to length 1.

    of: the texts of the vectors, for error messages. Raises RetrievalError for a shape other than
    [N, dim], NaN, infinity or a row of zeros: ScaNN ends the process on some of these.
    """
    try:
        rows = np.asarray(vectors)
        if rows.dtype.kind == "c":
            raise TypeError
        rows = np.ascontiguousarray(rows, np.float32)
    except (TypeError, ValueError):
        raise RetrievalError(
            f"{what} are a {type(vectors).__name__} that is no array of numbers; expected "
            "float32 [N, D]"
        ) from None
    if rows.ndim != 2 or rows.shape[1] == 0 or (dim is not None and rows.shape[1] != dim):
        raise RetrievalError(f"{what} have shape {list(rows.shape)}; expected [N, {dim or 'D'}]")
    if len(rows) == 1 and abs(rows[0].dot(rows[0]) - 1) < 1e-6:  # fast path for one query
        return rows
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", rows, rows)
    if (np.abs(squares - 1) < 1e-6).all():
        return rows
    wrong = np.flatnonzero(~(np.isfinite(squares) & (squares >= SMALLEST)))
    if wrong.size:
        row = int(wrong[0])
        small = np.isfinite(rows[row]).all() and squares[row] < SMALLEST
        kind = (
            ("is too small" if rows[row].any() else "is all zeros")
            if small
            else "holds NaN, infinity or a value too large"
        )
        named = f" (of {of[row][:60]!r})" if row < len(of) else ""
        raise RetrievalError(
            f"{what}: row {row}{named} {kind} ({wrong.size:,} such rows): nothing was changed; "
            "check the encoder"
        )
    return rows / np.sqrt(squares)[:, None]


def whole(ids: Ids) -> bool:
    """Whether ids are an integer array."""
    return isinstance(ids, np.ndarray) and ids.dtype.kind in "iu"


def check_ids(ids: Ids, count: int | None = None, numbers: bool = False) -> list:
    """Return the ids as a list of str, or of int if `numbers`.

    Raises RetrievalError unless they are distinct passage ids, or distinct 64-bit integers, and
    `count` of them if it is given.
    """
    if isinstance(ids, str) or (isinstance(ids, np.ndarray) and ids.ndim != 1):
        raise RetrievalError(f"ids={ids!r}: expected a list of passage ids")
    each: list = items(ids, "a list of passage ids")
    if count is not None and len(each) != count:
        raise RetrievalError(f"{len(each)} ids for {count} vectors: every vector needs its id")
    if numbers:
        each = [_number(id) for id in each]
    else:
        for id in each:
            check_id(id)
    if len(set(each)) != len(each):
        repeated = (
            sorted({id for id in each if each.count(id) > 1})
            if len(each) < 1000
            else ["among many"]
        )
        raise RetrievalError(
            f"ids given twice: {listed(repeated)}: every vector needs an id of its own"
        )
    return each


def _number(id: int | np.integer) -> int:
    if (
        isinstance(id, bool)
        or not isinstance(id, int | np.integer)
        or not -(2**63) <= int(id) < 2**63
    ):
        raise RetrievalError(
            f"id {id!r:.80} is not usable: this index was built with whole numbers, and expects "
            "them, of 64 bits"
        )
    return int(id)


def check_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise RetrievalError(f"k={k!r}: expected how many to return, a whole number of at least 1")
    return int(k)


def save_index(directory, write: Callable[[Path], None], ids: list[str], **facts) -> None:
    """Write a new version (000001 and so on) into `directory`, then remove older versions.

    A version holds what `write` puts into its folder, the ids and a manifest (`facts`, sha256 and
    size of every file). The manifest is written last, and everything is flushed to disk before one
    rename gives the version its name. A process killed at any moment leaves the old version or the
    new one, complete.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Older versions and leftovers of killed processes; writers hold a lock.
    before = [path for path in directory.iterdir() if path.is_dir()]
    fresh = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=directory))
    try:
        write(fresh)
        (fresh / IDS).write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
        files = {
            path.name: {"sha256": _digest(path), "bytes": path.stat().st_size}
            for path in sorted(fresh.iterdir())
        }
        for name in files:
            _flush(fresh / name)
        manifest = {**facts, "count": len(ids), "metric": "cosine", "files": files}
        manifest["sha256"] = _manifest_digest(manifest)
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _flush(fresh / MANIFEST)
        _flush(fresh)
        os.rename(fresh, directory / f"{_newest(directory)[0] + 1:06d}")
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _flush(directory)
    _flush(directory.parent)
    for path in before:
        shutil.rmtree(path, ignore_errors=True)


def _newest(directory: Path) -> tuple[int, Path]:
    """Return (number, folder) of the newest version; (0, `directory`) when there is none."""
    numbers = [
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdecimal() and path.name.isascii()
    ]
    return (max(numbers), directory / f"{max(numbers):06d}") if numbers else (0, directory)


def read_manifest(directory, kind: str) -> tuple[Path, dict, list[str]]:
    """Return (folder, manifest, ids) of the newest version of a saved index.

    Raises RetrievalError when a file is missing, changed or unlisted, or the kind differs.
    """
    directory = Path(directory)
    try:
        directory = _newest(directory)[1]
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files, found = manifest["files"], manifest["kind"]
        present = {path.name for path in directory.iterdir()} - {MANIFEST}
        if manifest.pop("sha256", "") != _manifest_digest(manifest):
            raise RetrievalError(
                f"{directory / MANIFEST} was changed after it was written: build the index again"
            )
        if found != kind:
            raise RetrievalError(f"{directory} holds a {found} index; expected {kind}")
        if present != set(files):
            raise RetrievalError(
                f"{directory} does not hold the files its manifest lists: "
                f"{listed(sorted(present ^ set(files)))}"
            )
        for name, expected in files.items():
            if _digest(directory / name) != expected["sha256"]:
                raise RetrievalError(
                    f"{directory / name} differs from its manifest (sha256): build the index again"
                )
        ids = json.loads((directory / IDS).read_text(encoding="utf-8"))
        if len(ids) != manifest["count"]:
            raise RetrievalError(
                f"{directory}: {len(ids)} ids, but the manifest counts {manifest['count']}"
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, RetrievalError):
            raise
        raise RetrievalError(
            f"{directory} is not a saved index ({type(error).__name__}: {error}): build it again"
        ) from None
    return directory, manifest, ids


def _manifest_digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
