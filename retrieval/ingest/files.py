"""Files to read: those named, those that a glob matches, those below a folder."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from lm.data import sources
from retrieval.errors import RetrievalError
from retrieval.ingest.documents import Report, in_utf16, printable

SNIFFED = 8192  # bytes in which a zero byte says that a file is no text
MAGIC = re.compile(r"[*?\[]")


class File(NamedTuple):
    """path: a path, a URI or the name of a data set. name: the source of its passages, and what their ids begin with."""

    path: str
    name: str


def find(inputs: Sequence[str], suffixes: Collection[str], binary: Collection[str], report: Report) -> list[File]:
    """The files of paths, folders, globs, URIs and names of data sets (tfds:, hf:), each once, in order.

    Names: a file's own; below a folder, the folder's and the way down from there; of a glob, the way down from its first wildcard.
    In folders and globs no link is followed, and what is hidden, empty, of no known suffix, or binary without being one of the `binary`
    suffixes, is left out and counted. Raises RetrievalError for an input that is missing or holds nothing to read, and for two files
    of one name; OSError for a folder that cannot be read.
    """
    found: dict[str, File] = {}
    for given in inputs:
        files = list(_of(given, suffixes, binary, report))
        if not files:
            skipped = "; ".join(f"{reason}: {', '.join(report.examples[reason])}" for reason in report.skipped)
            raise RetrievalError(
                f"{given} holds nothing to read{skipped and f' ({skipped})'}: expected files ending in {suffixes_of(suffixes)}"
            )
        for file in files:
            found.setdefault(file.path if _elsewhere(file.path) else os.path.realpath(file.path), file)
    paths: dict[str, str] = {}
    for path, name in found.values():
        if (other := paths.setdefault(name, path)) != path:
            raise RetrievalError(f"{other} and {path} would both be called {name}: give a folder that holds both")
    return list(found.values())


def covers(inputs: Sequence[str], files: Sequence[File]) -> Callable[[str], bool]:
    """Whether a source is one of the files, or would lie below one of the folders."""
    names = {file.name for file in files}
    folders = tuple(f"{printable(Path(given).resolve().name)}/" for given in inputs if os.path.isdir(given))
    return lambda source: source in names or source.startswith(folders)


def suffixes_of(suffixes: Collection[str]) -> str:
    *most, last = suffixes
    return f"{', '.join(most)} or {last}"


def _elsewhere(path: str) -> bool:
    return path.startswith(sources.SETS) or "://" in path


def _of(given: str, suffixes: Collection[str], binary: Collection[str], report: Report) -> Iterator[File]:
    above = MAGIC.split(given)[0].rpartition("/")[0]
    if given.startswith(sources.SETS):
        yield File(given, printable(given))
    elif "://" in given:
        yield from (File(_known(path, suffixes), printable(path[len(above) + 1 :])) for path in sources.find_files(given))
    elif os.path.isdir(given):
        yield from _below(Path(given), suffixes, binary, report)
    elif os.path.isfile(given):
        yield File(_known(given, suffixes), printable(os.path.basename(given)))
    elif MAGIC.search(given):
        root = Path(above or ("/" if given.startswith("/") else "."))
        files = (path for path in sorted(root.glob(given[len(above) :].lstrip("/"))) if not path.is_dir())
        yield from _kept(files, root, "", suffixes, binary, report)
    else:
        raise RetrievalError(f"{given} does not exist: give a file, a folder or a glob such as 'notes/**/*.md'")


def _known(path: str, suffixes: Collection[str]) -> str:
    if sources.kind(path) not in suffixes:
        raise RetrievalError(f"{path}: expected a file ending in {suffixes_of(suffixes)}")
    return path


def _below(root: Path, suffixes: Collection[str], binary: Collection[str], report: Report) -> Iterator[File]:
    for folder, folders, files in os.walk(root, onerror=_fail):
        folders.sort()
        for name in [name for name in folders if name.startswith(".") or os.path.islink(os.path.join(folder, name))]:
            folders.remove(name)
            report.skip("hidden" if name.startswith(".") else "links", printable(os.path.join(folder, name)))
        paths = (Path(folder, name) for name in sorted(files))
        yield from _kept(paths, root, f"{root.resolve().name}/", suffixes, binary, report)


def _kept(paths, root: Path, prefix: str, suffixes: Collection[str], binary: Collection[str], report: Report) -> Iterator[File]:
    for path in paths:
        if reason := _not_read(path, root, suffixes, binary):
            report.skip(reason, printable(str(path)))
        else:
            yield File(str(path), printable(prefix + path.relative_to(root).as_posix()))


def _not_read(path: Path, root: Path, suffixes: Collection[str], binary: Collection[str]) -> str:
    """Why a file of a folder or glob is left out; "" when it is read."""
    way, kind = path.relative_to(root), sources.kind(path.name)
    if any(part.startswith(".") for part in way.parts):
        return "hidden"
    if any((root / part).is_symlink() for part in (way, *way.parents[:-1])):
        return "links"
    if kind not in suffixes:
        return f"of unknown kind {printable(kind)}" if kind else "without a suffix"
    if not path.is_file() or not path.stat().st_size:
        return "empty"
    if kind in binary or path.name.endswith(".gz"):
        return ""
    with path.open("rb") as f:
        begin = f.read(SNIFFED)
    return "binary" if b"\0" in begin and not in_utf16(begin) else ""


def _fail(error: OSError) -> NoReturn:
    raise error
