"""File discovery: named files, matches of globs, files below folders."""

import fnmatch
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from lm.data.read import sources
from retrieval.errors import RetrievalError
from retrieval.ingest.documents import Report, in_utf16, printable

SNIFFED = 8192  # first bytes of a file, in which a zero byte marks it as binary
MAGIC = re.compile(r"[*?\[]")


class File(NamedTuple):
    """A file to read.

    path: a path, a URI or the name of a data set.
    name: the source of its passages and the prefix of their ids.
    origin: identifies which passages came from it. It is the name if that begins with a folder's,
    else the folder above, "//" and the name.
    """

    path: str
    name: str
    origin: str


def find(
    inputs: Sequence[str], suffixes: Collection[str], binary: Collection[str], report: Report
) -> list[File]:
    """Return the files of paths, folders, globs, URIs and data sets (tfds:, hf:), each once.

    A named file has its own name. Below a folder a name is the folder's and the relative path; of a
    glob it is the path from the first wildcard. In folders and globs, links are not followed.
    Hidden or empty files, unknown suffixes and binary files not in `binary` are skipped and
    counted. Raises RetrievalError for an input that is missing or holds nothing to read, and for
    two files with one name; OSError for a folder that cannot be read.
    """
    found: dict[str, File] = {}
    for given in inputs:
        files = list(_of(given, suffixes, binary, report))
        if not files:
            skipped = "; ".join(
                f"{reason}: {', '.join(report.examples[reason])}" for reason in report.skipped
            )
            raise RetrievalError(
                f"{given} holds nothing to read{skipped and f' ({skipped})'}: expected files "
                f"ending in {suffixes_of(suffixes)}"
            )
        for file in files:
            found.setdefault(
                file.path if _elsewhere(file.path) else os.path.realpath(file.path), file
            )
    paths: dict[str, str] = {}
    for path, name, _ in found.values():
        if (other := paths.setdefault(name, path)) != path:
            raise RetrievalError(
                f"{other} and {path} would both be called {name}: give a folder that holds both"
            )
    return list(found.values())


def covers(inputs: Sequence[str], files: Sequence[File]) -> Callable[[str], bool]:
    """Return a test of whether an origin belongs to the inputs.

    It does if it is one of the files, or if such a file would be found below one of the folders or
    by one of the globs.
    """
    origins, folders, globs = {file.origin for file in files}, [], []
    for given in inputs:
        if os.path.isdir(given):
            folders.append(f"{_called(Path(given))}/")
        elif (
            MAGIC.search(given) and not given.startswith(sources.SETS) and not os.path.isfile(given)
        ):
            above, pattern = _split(given)
            globs.append(
                (
                    printable(above) if "://" in given else _called(_root(given, above)),
                    printable(pattern).split("/"),
                )
            )

    def covered(origin: str) -> bool:
        folder, _, name = origin.rpartition("//")
        below = not folder and origin.startswith(tuple(folders))
        return (
            origin in origins
            or below
            or any(
                folder == above and _matches(name.split("/"), pattern) for above, pattern in globs
            )
        )

    return covered


def covers_names(inputs: Sequence[str], files: Sequence[File]) -> Callable[[str], bool]:
    """Return a test of whether a file name belongs to the inputs.

    It does if it is one of the files or below one of the folders; used where no origin was
    recorded.
    """
    names = {file.name for file in files}
    folders = tuple(f"{_called(Path(given))}/" for given in inputs if os.path.isdir(given))
    return lambda name: name in names or name.startswith(folders)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether path parts match glob parts, where ** matches any number of folders."""
    if not pattern or not parts:
        return not parts and not pattern
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts)))
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def suffixes_of(suffixes: Collection[str]) -> str:
    *most, last = suffixes
    return f"{', '.join(most)} or {last}"


def _elsewhere(path: str) -> bool:
    return path.startswith(sources.SETS) or "://" in path


def _of(
    given: str, suffixes: Collection[str], binary: Collection[str], report: Report
) -> Iterator[File]:
    above, pattern = _split(given)
    if given.startswith(sources.SETS):
        yield File(given, printable(given), printable(given))
    elif "://" in given:
        for path in sources.find_files(given):
            name = printable(path[len(above) + 1 :])
            yield File(_known(path, suffixes), name, f"{printable(above)}//{name}")
    elif os.path.isdir(given):
        yield from _below(Path(given), suffixes, binary, report)
    elif os.path.isfile(given):
        name = printable(os.path.basename(given))
        yield File(_known(given, suffixes), name, f"{_called(Path(given).parent)}//{name}")
    elif MAGIC.search(given):
        root = _root(given, above)
        files = (path for path in sorted(root.glob(pattern)) if not path.is_dir())
        yield from _kept(files, root, "", suffixes, binary, report)
    else:
        raise RetrievalError(
            f"{given} does not exist: give a file, a folder or a glob such as 'notes/**/*.md'"
        )


def _split(given: str) -> tuple[str, str]:
    """Split a glob at the last slash before its first wildcard: (folder, pattern)."""
    above = MAGIC.split(given)[0].rpartition("/")[0]
    return above, given[len(above) :].lstrip("/")


def _root(given: str, above: str) -> Path:
    return Path(above or ("/" if given.startswith("/") else "."))


def _called(folder: Path) -> str:
    return printable(folder.resolve().name)


def _known(path: str, suffixes: Collection[str]) -> str:
    if sources.kind(path) not in suffixes:
        raise RetrievalError(f"{path}: expected a file ending in {suffixes_of(suffixes)}")
    return path


def _below(
    root: Path, suffixes: Collection[str], binary: Collection[str], report: Report
) -> Iterator[File]:
    for folder, folders, files in os.walk(root, onerror=_fail):
        folders.sort()
        for name in [
            name
            for name in folders
            if name.startswith(".") or os.path.islink(os.path.join(folder, name))
        ]:
            folders.remove(name)
            report.skip(
                "hidden" if name.startswith(".") else "links", printable(os.path.join(folder, name))
            )
        paths = (Path(folder, name) for name in sorted(files))
        yield from _kept(paths, root, f"{_called(root)}/", suffixes, binary, report)


def _kept(
    paths,
    root: Path,
    prefix: str,
    suffixes: Collection[str],
    binary: Collection[str],
    report: Report,
) -> Iterator[File]:
    for path in paths:
        if reason := _not_read(path, root, suffixes, binary):
            report.skip(reason, printable(str(path)))
        else:
            name = prefix + printable(path.relative_to(root).as_posix())
            yield File(str(path), name, name if prefix else f"{_called(root)}//{name}")


def _not_read(path: Path, root: Path, suffixes: Collection[str], binary: Collection[str]) -> str:
    """Why to skip a file of a folder or glob; "" to read it."""
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
