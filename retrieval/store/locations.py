"""Where a memory is: a folder, or a URI on an object store that Lance can reach (s3, gs, az)."""

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path

import lance

from retrieval.errors import RetrievalError
from retrieval.passages import check_unicode, listed
from retrieval.store.checksums import CHECKSUMS
from retrieval.store.locks import WAIT_SECONDS, file_lock

TABLE = "passages.lance"
INDEX = "index"
LOCK = "lock"


def place_of(path) -> Path | str:
    """Return an absolute Path, or a URI without its trailing slash.

    Raises RetrievalError for anything else.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise RetrievalError(
            f"{path!r} is no path: expected the folder of a memory, or its URI on an object store"
        )
    check_unicode("the path of a memory", text)
    # Absolute, as a process may change its working directory.
    return text.rstrip("/") if "://" in text else Path(text).absolute()


def table_uri(place: Path | str) -> str:
    return f"{place}/{TABLE}"


def index_folder(place: Path | str) -> Path:
    """Where the index is saved: in the memory's folder, or in the user's cache for a URI."""
    if isinstance(place, Path):
        return place / INDEX
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "openbook" / "memories" / hashlib.sha256(place.encode()).hexdigest()[:32] / INDEX


def writers_lock(place: Path | str):
    """Allow one writer at a time in a folder.

    An object store has no locks: writers there conflict at the commit, see conflicts.py.
    """
    return file_lock(place / LOCK) if isinstance(place, Path) else contextlib.nullcontext()


def exists(path) -> bool:
    """Whether there is a memory at `path`."""
    place = place_of(path)
    if isinstance(place, Path):
        try:
            return any(
                re.fullmatch(r"\d+\.manifest", name)
                for name in os.listdir(place / TABLE / "_versions")
            )
        except (FileNotFoundError, NotADirectoryError):
            return False
    try:
        lance.dataset(table_uri(place))
    except ValueError as error:
        if "not found" in str(error):
            return False
        raise RetrievalError(f"{place} cannot be reached: {str(error)[:200]}") from None
    except OSError as error:
        raise RetrievalError(f"{place} cannot be reached: {str(error)[:200]}") from None
    return True


def check_there(place: Path | str) -> None:
    """Raise RetrievalError when there is no memory at `place`."""
    if not exists(place):
        there = isinstance(place, Path) and place.exists()
        what = (
            "does not exist"
            if not there
            else "is a folder without a memory"
            if Path(place).is_dir()
            else "is a file"
        )
        raise RetrievalError(
            f"{place} {what}: expected a folder made by Memory.create or python -m retrieval.build"
        )


def identity(place: Path | str) -> tuple[int, int] | None:
    """Return (device, inode) of the table, which differs if another memory takes its place.

    None on an object store, or where there is no memory.
    """
    try:
        found = os.stat(place / TABLE / "_versions") if isinstance(place, Path) else None
    except OSError:
        return None
    return found and (found.st_dev, found.st_ino)


def bytes_in(folder: Path) -> int:
    """Total size of the files below a folder; files may disappear meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size * path.is_file()
    return total


def replace(place: Path, work: Path) -> None:
    """Replace what is at `place` by the memory `work`, atomically.

    `recover` repairs what a killed process left. Waits for a writer in the old memory; later
    writers there get an error. Raises RetrievalError when a writer does not finish.
    """
    old = _aside(place)
    with _swapping(place):
        with writers_lock(place) if exists(place) else contextlib.nullcontext():
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(place, old)
            os.rename(work, place)
        shutil.rmtree(old, ignore_errors=True)


def recover(place: Path | str) -> None:
    """Restore a memory that a killed process had moved aside; remove one that was replaced.

    Waits while another process is replacing the memory.
    """
    if not isinstance(place, Path):
        return
    place = place.resolve()
    old, there = _aside(place), exists(place)
    if not old.exists():
        return
    with (
        contextlib.suppress(RetrievalError) if there else contextlib.nullcontext(),
        _swapping(place, 0.0 if there else WAIT_SECONDS),
    ):
        if exists(place):
            shutil.rmtree(old, ignore_errors=True)
        elif not place.exists() and old.exists():
            os.rename(old, place)


@contextlib.contextmanager
def _swapping(place: Path, wait_seconds: float = WAIT_SECONDS):
    """Hold the lock under which one process at a time moves memories at `place`."""
    lock = place.with_name(f".{place.name}.swap")
    with file_lock(lock, wait_seconds):
        yield
        lock.unlink(missing_ok=True)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")


def check_free(path) -> None:
    """Raise RetrievalError unless a memory can be made at `path`.

    It must be a new or empty folder, or one left by an interrupted create.
    """
    place = place_of(path)
    if exists(place):
        raise RetrievalError(f"{place} already holds a memory: open it, or choose another folder")
    if not isinstance(place, Path) or not place.exists():
        return
    if not place.is_dir():
        raise RetrievalError(f"{place} is a file: a memory is a folder; choose another name")
    strangers = sorted(
        entry.name for entry in place.iterdir() if entry.name not in (TABLE, LOCK, CHECKSUMS)
    )
    if strangers:
        raise RetrievalError(
            f"{place} is not empty ({listed(strangers)}): a memory needs a folder of its own; "
            "choose a new one"
        )
    if any((place / TABLE / "data").glob("*")):
        raise RetrievalError(
            f"{place} holds passages, but {place / TABLE / '_versions'} nothing that says which: "
            "restore that folder from a copy of the memory, or choose another place"
        )
