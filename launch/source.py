"""Code for a remote machine: tracked files in the working tree, with the commit and diff."""

import dataclasses
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

from launch.errors import LaunchError

LIMIT = 100 * 10**6  # bytes
RECORD = ".source.json"
DIFF = ".source.diff"


@dataclasses.dataclass(frozen=True)
class Source:
    """Tracked files of a checkout.

    bytes: total size. commit: sha of HEAD ('' before the first commit). diff: changes since HEAD.
    untracked: number of untracked files.
    """

    root: Path
    files: tuple[str, ...]
    bytes: int
    commit: str
    diff: bytes
    untracked: int

    def __str__(self) -> str:
        state = "with changes, recorded as a diff" if self.diff else "unchanged"
        left = f"; {self.untracked} untracked files are not sent" if self.untracked else ""
        return (
            f"{len(self.files)} files, {self.bytes / 1e6:.1f} MB, commit "
            f"{self.commit[:12] or 'none'} {state}{left}"
        )


def read_source(directory: Path, limit: int = LIMIT) -> Source:
    """Checkout around directory. Raises LaunchError if there is none or it exceeds limit bytes."""
    root = Path(_git(directory, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
    listed = [
        name for name in os.fsdecode(_git(root, "ls-files", "-z", "--cached")).split("\0") if name
    ]
    files = sorted(
        name for name in set(listed) if (root / name).is_symlink() or (root / name).is_file()
    )
    sizes = {name: (root / name).lstat().st_size for name in files}
    total = sum(sizes.values())
    if total > limit:
        largest = ", ".join(
            f"{name} ({sizes[name] / 1e6:.1f} MB)"
            for name in sorted(files, key=lambda name: -sizes[name])[:3]
        )
        raise LaunchError(
            f"the tracked files of {root} are {total / 1e6:.1f} MB, more than the "
            f"{limit / 1e6:.0f} MB that are copied to a machine; "
            f"largest: {largest}. Take data out of git and keep it in a bucket"
        )
    has_commit = _git(root, "rev-list", "-n1", "--all") != b""
    return Source(
        root=root,
        files=tuple(files),
        bytes=total,
        commit=_git(root, "rev-parse", "HEAD").decode().strip() if has_commit else "",
        diff=_git(root, "diff", "--binary", "HEAD") if has_commit else b"",
        untracked=_git(root, "ls-files", "-z", "--others", "--exclude-standard").count(b"\0"),
    )


def write_archive(source: Source, path: Path) -> None:
    """Write the files to a .tar.gz, with RECORD (commit, changed) and the DIFF, if any."""
    record = json.dumps(
        {"commit": source.commit, "changed": bool(source.diff), "files": len(source.files)}
    ).encode()
    with tarfile.open(path, "w:gz", compresslevel=6) as archive:
        for name in source.files:
            archive.add(source.root / name, arcname=name, recursive=False)
        for name, content in ((RECORD, record), (DIFF, source.diff)):
            if content:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _git(directory: Path, *args: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *args],
            capture_output=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise LaunchError(
            "git is not on PATH; it tells which files to copy to the machine"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"git {args[0]} did not end within 60 s in {directory}") from error
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip() or "nothing").splitlines()[-1]
        raise LaunchError(
            f"git {args[0]} failed in {directory}: {said}; the code to copy is what git tracks "
            "there"
        )
    return done.stdout
