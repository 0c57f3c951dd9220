"""Digests: a CRC-32 of every file of a folder, stored beside the files and verified before reading.

Neither Orbax nor TensorStore's zarr driver stores a checksum of array data, so a flipped bit would
be read as another number. zlib.crc32 detects every single-bit flip and every burst of up to 32
bits. It runs at about 3.4 GB/s per core and releases the GIL. In object storage the store's own
checksum (crc32c on gs://) is compared, and no data is read again.

FOLDER/digests-PART-of-PARTS has one line: CRC-32 of the JSON, the JSON. Each process on a shared
disk writes one part.
"""

import concurrent.futures
import json
import os
import re
import zlib
from collections.abc import Collection, Iterable
from typing import Any

from lm.weights.runs.paths import Folder, is_remote, write_atomically

PIECE = 2**26  # bytes per digest, so that threads and processes can share a file
BLOCK = 2**20  # bytes read at a time
NAME = re.compile(r"digests-(\d+)-of-(\d+)")
STORED = (
    "crc32c",
    "md5Hash",
    "ETag",
)  # keys of the store's checksum in fsspec's `info`, in order of preference

Piece = tuple[str, int, int]  # (file, offset, bytes)


def write(
    folder: Folder,
    part: int = 0,
    parts: int = 1,
    files: Collection[str] | None = None,
    threads: int = 1,
) -> None:
    """Write one of `parts` shares of the digests of a folder's files.

    files: paths relative to the folder; default: all.
    """
    pieces: list[Piece]
    if is_remote(folder):
        if part:
            return
        parts, stored = 1, _stored(folder, files)
        sizes = {name: size for name, (size, _) in stored.items()}
        pieces, digests = (
            [(name, 0, size) for name, size in sizes.items()],
            [digest for _, digest in stored.values()],
        )
    else:
        names = _files(folder) if files is None else sorted(files)
        sizes = {name: os.stat(folder / name).st_size for name in names}
        pieces = [
            (name, at, min(PIECE, size - at))
            for name, size in sizes.items()
            for at in range(0, max(1, size), PIECE)
        ][part::parts]
        digests = _crcs(folder, pieces, threads)
    body = json.dumps(
        {
            "files": sizes,
            "pieces": [[*piece, digest] for piece, digest in zip(pieces, digests, strict=True)],
        }
    )
    write_atomically(folder / f"digests-{part}-of-{parts}", f"{_crc(body.encode())} {body}\n")


def problems(
    folder: Folder, part: int = 0, parts: int = 1, threads: int = os.cpu_count() or 1
) -> list[str] | None:
    """Verify one of `parts` shares of the files, and return the differences.

    Returns None when digests are missing or incomplete.
    """
    found = (
        [file for file in folder.iterdir() if NAME.fullmatch(file.name)] if folder.is_dir() else []
    )
    if not found or {len(found)} != {int(file.name.rpartition("-")[2]) for file in found}:
        return None
    sizes: dict[str, int] = {}
    pieces: list[tuple[Any, ...]] = []
    for file in found:
        raw = file.read_bytes()
        body = raw[9:-1]
        if raw != f"{_crc(body)} ".encode() + body + b"\n":
            return [
                f"{file.name} is damaged, so nothing can be verified (delete it to use the other "
                "files as they are)"
            ]
        content = json.loads(body)
        sizes |= content["files"]
        pieces += content["pieces"]
    if is_remote(folder):
        stored = _stored(folder, sizes)
        return [
            f"{name} differs from its digest"
            for name, _, size, digest in pieces
            if stored.get(name) != (size, digest)
        ]
    there = {
        name: os.path.getsize(folder / name) if os.path.isfile(folder / name) else -1
        for name in sizes
    }
    wrong = {
        n: "is gone" if there[n] < 0 else f"has {there[n]} bytes, not {size}"
        for n, size in sizes.items()
        if there[n] != size
    }
    mine = [tuple(p) for p in sorted(pieces)[part::parts] if p[0] not in wrong]
    now = _crcs(folder, [p[:3] for p in mine], threads)
    wrong |= {
        p[0]: "differs from its digest"
        for p, digest in zip(mine, now, strict=True)
        if digest != p[3]
    }
    return [f"{name} {problem}" for name, problem in wrong.items()]


def _files(folder: Folder) -> list[str]:
    found = (
        os.path.relpath(os.path.join(at, name), folder)
        for at, _, names in os.walk(folder)
        for name in names
    )
    return sorted(
        name for name in found if not NAME.fullmatch(name.removeprefix(".").removesuffix(".new"))
    )


def _crcs(folder: Folder, pieces: Iterable[Piece], threads: int) -> list[str]:
    def of(piece: Piece) -> str:
        name, at, left = piece
        total = 0
        with open(folder / name, "rb") as file:
            file.seek(at)
            while left and (block := file.read(min(BLOCK, left))):
                total, left = zlib.crc32(block, total), left - len(block)
        return f"{total:08x}"

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(of, pieces))


def _crc(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def _stored(folder: Folder, files: Collection[str] | None) -> dict[str, tuple[int, str]]:
    """File -> (bytes, checksum of the store; a CRC-32 of the content if the store has none)."""
    from etils.epath import backend

    fs, root = backend.fsspec_backend.fs(folder), str(folder).partition("://")[2] + "/"
    fs.invalidate_cache()
    found = {
        path.partition(root)[2]: info for path, info in fs.find(str(folder), detail=True).items()
    }
    wanted = (
        [name for name in found if not NAME.fullmatch(name)]
        if files is None
        else [name for name in files if name in found]
    )
    digests = {}
    for name in sorted(wanted):
        kind = next((kind for kind in STORED if found[name].get(kind)), "")
        digests[name] = (
            found[name]["size"],
            f"{kind} {found[name][kind]}" if kind else _crc((folder / name).read_bytes()),
        )
    return digests
