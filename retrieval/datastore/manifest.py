"""The manifest of a datastore: which segments a version has, and what was removed from them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from retrieval.errors import RetrievalError
from retrieval.memory import Memory
from retrieval.passages import Commit

MANIFEST, PROJECTION, SEGMENTS, LOCK = "datastore.json", "projection.npz", "segments", "lock"
FORMAT = 1


def read(path: Path) -> dict:
    """Raises RetrievalError for a folder without a manifest, or with a damaged one."""
    try:
        found = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise RetrievalError(
                f"{path} is a datastore of format {found['format']}, and this version reads "
                f"format {FORMAT}: build it again"
            )
        return found
    except FileNotFoundError:
        raise RetrievalError(
            f"{path} holds no datastore: build one with python -m retrieval.build_datastore"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RetrievalError):
            raise
        raise RetrievalError(
            f"{path / MANIFEST} cannot be read ({error}): build the datastore again"
        ) from None


def write(path: Path, manifest: dict) -> None:
    """Replace the manifest in one rename."""
    fresh = path / f"{MANIFEST}.new"
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path / MANIFEST)
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def stamp(path: Path) -> Any:
    """Changes whenever the manifest is replaced."""
    try:
        found = os.stat(path / MANIFEST)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def next_folder(path: Path) -> Path:
    """Folder of a new segment."""
    folder = path / SEGMENTS
    numbers = [int(each.name) for each in folder.iterdir()] if folder.exists() else []
    return folder / f"{max(numbers, default=0) + 1:06d}"


def memory_facts(memory: Memory) -> dict:
    """The newest version of a memory, and what tells it from another memory."""
    log = memory.log()
    return {"version": memory.version, "commit": digest(log[-1])}


def commit_of(memory: Memory, version: int) -> str:
    """What `memory_facts` had for that version; "" where the memory has no such version."""
    if version > memory.version:
        return ""
    return digest([commit for commit in memory.log() if commit.version <= version][-1])


def digest(commit: Commit) -> str:
    return hashlib.sha256(repr(commit).encode()).hexdigest()[:16]
