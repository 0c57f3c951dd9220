"""Checksums: sha256 and size of every file of a memory's table, in a journal beside it.

Lance keeps no checksums, so a flipped bit would be read as data. Its files never change once
written. The files of a commit are recorded right after it: one journal line per commit, with a copy
of the commit's record and a checksum of the line itself. A process killed between the two leaves
files that are not recorded; the next change records them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import lance

from retrieval.errors import RetrievalError

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums"
AT_A_KILL = 3  # most versions that a killed change leaves unrecorded: its own and maintenance
HINT = "_versions/latest_version_hint.json"  # the only file that Lance overwrites


def files_of(dataset: lance.LanceDataset) -> set[str]:
    """Return the data and deletion files of a version, and the folders of all indices.

    Paths are relative to the table.
    """
    names = {f"_indices/{path.name}" for path in Path(dataset.uri, "_indices").glob("*")}
    for fragment in (fragment.metadata for fragment in dataset.get_fragments()):
        names.update(f"data/{file.path}" for file in fragment.files)
        if fragment.deletion_file is not None:
            names.add(fragment.deletion_file.path(fragment.id))
    return names


def manifest_of(version: int) -> str:
    """Return the path of a version's manifest, relative to the table."""
    return f"_versions/{2**64 - 1 - version:020}.manifest"


def new_files(
    dataset: lance.LanceDataset, before: set[str], version: int, uuid: str = "*"
) -> set[str]:
    """Return the files written since `version`, which had the files `before`.

    uuid: of the transaction, where there was only one.
    """
    table = Path(dataset.uri)
    names = files_of(dataset) - before
    folders = {name for name in names if name.startswith("_indices/")}
    names = (names - folders) | {
        path.relative_to(table).as_posix() for name in folders for path in (table / name).rglob("*")
    }
    for later in range(version, dataset.version):
        names.add(manifest_of(later + 1))
        names.update(
            f"_transactions/{path.name}"
            for path in (table / "_transactions").glob(f"{later}-{uuid}.txn")
        )
    return names


def note(
    table: Path, since: int, version: int, names: Iterable[str], record: str | None = None
) -> None:
    """Record the files written after version `since` up to `version`.

    record: the commit record of `version`, if it has one. On failure a warning is logged and the
    next change records the files.
    """
    journal = table.parent / CHECKSUMS
    try:
        files = {name: _digest(table / name) for name in sorted(names)}
        body = json.dumps({"since": since, "version": version, "record": record, "files": files})
        with open(journal, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            # Keep a truncated last line separate from this one.
            start = b"" if file.read(1) in (b"", b"\n") else b"\n"
            line = start + f"{_hash(body)} {body}\n".encode()
            try:
                written = file.write(line)
            except OSError:
                file.truncate(size)
                raise
            if written != len(line):
                file.truncate(size)
                raise OSError(f"only {written} of {len(line)} bytes could be written")
    except OSError as error:
        logger.warning(
            "%s: the checksums of version %d will be noted by the next change (%s)",
            journal,
            version,
            error,
        )


def catch_up(table: Path, version: int) -> None:
    """Record every unrecorded file of the table if the last line is older than `version`."""
    if newest_noted(table)["version"] == version:
        return
    lines, _ = _read(table.parent / CHECKSUMS)
    if missing := _unnoted(table, lines):
        logger.warning(
            "%s: lines are gone; the files of %d versions are noted as they are now",
            table.parent / CHECKSUMS,
            len(missing),
        )
    noted = {name for line in lines for name in line["files"]}
    present = {path.relative_to(table).as_posix() for path in table.rglob("*") if path.is_file()}
    note(table, version, version, present - noted - {HINT})


def records(journal: Path) -> dict[int, str | None]:
    """Return version -> record (None for maintenance) of versions recorded when written."""
    lines = [line for line in _read(journal)[0] if line["since"] < line["version"]]
    upkeep = {
        version: None for line in lines for version in range(line["since"] + 1, line["version"])
    }
    return upkeep | {line["version"]: line["record"] for line in lines}


def newest_noted(table: Path) -> dict:
    """Return the last line; version 0 and no files where there is none or it is damaged."""
    return _last(table.parent / CHECKSUMS) or {"version": 0, "files": {}}


def check_newest(table: Path, version: int, noted: Mapping) -> None:
    """Raise RetrievalError when the newest version was lost or its manifest was changed.

    noted: the last line, read before the version was looked up. Without this check Lance would
    silently read another state.
    """
    what = manifest_of(noted["version"])
    if noted["version"] > version:
        raise RetrievalError(
            f"{table / what} is gone: version {noted['version']} was committed, and version "
            f"{version} would be shown in its place; restore "
            f"the file from a copy of the memory, or delete {table.parent / CHECKSUMS} to go on "
            f"from version {version}"
        )
    if noted["version"] == version and what in noted["files"]:
        check_files(table, {what: noted["files"][what]})


def check_versions(table: Path, versions: Collection[int]) -> None:
    """Raise RetrievalError where a manifest of these versions has changed since it was written."""
    wanted = {manifest_of(version) for version in versions}
    noted = (
        (name, facts)
        for line in _read(table.parent / CHECKSUMS)[0]
        for name, facts in line["files"].items()
    )
    check_files(table, {name: facts for name, facts in noted if name in wanted})


def check_files(table: Path, files: Mapping[str, tuple[int, str]]) -> None:
    for problem in _differing(table, files):
        raise RetrievalError(
            f"{problem}: `verify` says what else is damaged; restore it from a copy of the memory"
        )


def damaged(table: Path) -> list[str]:
    """Return what is damaged in the files of a table, one sentence each."""
    journal = table.parent / CHECKSUMS
    if not journal.exists():
        return [
            f"{journal} is missing: the next change writes it anew, and cannot tell what was "
            "damaged before"
        ]
    lines, problems = _read(journal)
    if missing := _unnoted(table, lines):
        problems.append(
            f"{journal} says nothing of {len(missing):,} versions (the first is {missing[0]}), "
            "lines of it are gone: restore it from a copy of the memory, what was damaged in "
            "these cannot be told"
        )
    for line in lines:
        what = f"written by version {line['version']}: restore it from a copy of the memory"
        problems += [f"{problem}, {what}" for problem in _differing(table, line["files"])]
    hint = table / HINT
    if hint.exists():
        newest = max((line["version"] for line in lines), default=0)
        try:
            good = json.loads(hint.read_bytes())["version"] >= newest
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            problems.append(
                f"{hint} does not name version {newest}: delete it, it is only a hint and the "
                "next change writes it anew"
            )
    return problems


def _unnoted(table: Path, lines: list[dict]) -> list[int]:
    """Return the versions whose manifests exist but are not recorded.

    [] for the last few versions, which a process killed at a commit leaves.
    """
    noted, newest = (
        {name for line in lines for name in line["files"]},
        max((line["version"] for line in lines), default=0),
    )
    there = [
        2**64 - 1 - int(path.stem)
        for path in (table / "_versions").glob("*.manifest")
        if path.stem.isdecimal()
    ]
    missing = sorted(version for version in there if manifest_of(version) not in noted)
    return (
        missing if len(missing) > AT_A_KILL or any(version <= newest for version in missing) else []
    )


def damaged_in(table: Path, folders: Collection[str]) -> list[str]:
    """Return what is damaged in the recorded files of some folders of a table.

    [] where there are no checksums.
    """
    lines = _read(table.parent / CHECKSUMS)[0] if folders else []
    noted = {
        name: facts
        for line in lines
        for name, facts in line["files"].items()
        if name.rpartition("/")[0] in folders
    }
    return list(_differing(table, noted))


def _differing(table: Path, files: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    for name, facts in files.items():
        try:
            if _digest(table / name) != tuple(facts):
                yield f"{table / name} differs from its checksum"
        except OSError as error:
            yield f"{table / name} cannot be read ({error.strerror})"


def _read(journal: Path) -> tuple[list[dict], list[str]]:
    """Return (valid lines, a sentence for each damaged line)."""
    text = journal.read_bytes().decode("ascii", "replace") if journal.exists() else ""
    texts = text.split("\n")
    lines = [_line(line) for line in texts[:-1]] + [None] * bool(texts[-1])
    remedy = "differs from its checksum: restore the file from a copy of the memory"
    problems = [
        f"{journal} line {number} {remedy}"
        for number, line in enumerate(lines, start=1)
        if line is None
    ]
    return [line for line in lines if line is not None], problems


def _last(journal: Path) -> dict | None:
    """Return the last line; None where there is none or it is damaged."""
    if not journal.exists():
        return None
    with open(journal, "rb") as file:
        size, step = file.seek(0, os.SEEK_END), 512
        text = b""
        while b"\n" not in text[:-1] and len(text) < size:
            step *= 8
            file.seek(max(0, size - step))
            text = file.read()
    return _line(text.decode("ascii", "replace").removesuffix("\n").rpartition("\n")[2])


def _line(text: str) -> dict | None:
    """Parse a line; None when it differs from its checksum."""
    digest, _, body = text.partition(" ")
    return json.loads(body) if digest == _hash(body) else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> tuple[int, str]:
    """Return (bytes, sha256)."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
