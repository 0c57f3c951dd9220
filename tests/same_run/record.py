"""Record of a checkout's results, to compare a later checkout with.

It is a JSON file with an archive of the files made beside it.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import tarfile
from collections.abc import Sequence

from tests.same_run.jobs import RUNS, Job, asked
from tests.same_run.processes import XLA_FLAGS, Side, failure

FORMAT = 1
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "grain", "tokenizers", "transformers")
# CPU flags that decide which code XLA generates
MATTER = r"(sse|ssse|avx|fma|amx|f16c|asimd|sve|bf16|i8mm)\w*"
MADE = ("memory", "encoder", "programs", *(f"runs/{name}" for name in RUNS))  # in a side's folder


class RecordError(ValueError):
    """Record that cannot be used; the message says why and what to do."""


def machine() -> dict[str, str]:
    """Properties other than the code that results depend on: versions and the kind of CPU."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    kept = sorted(flag for flag in flags[1].split() if re.fullmatch(MATTER, flag)) if flags else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return found | {
        "CPU": platform.machine(),
        "CPU flags": " ".join(kept),
        "CPU cores": str(cores),
        "XLA_FLAGS": XLA_FLAGS,
    }


def commit(checkout: pathlib.Path) -> str:
    """Commit of a checkout and the number of files changed since; "" outside a repository."""
    try:
        head, status = (
            subprocess.run(["git", *args], cwd=checkout, capture_output=True, text=True, check=True)
            for args in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    changed = len(status.stdout.splitlines())
    return head.stdout.strip() + (f" and {changed} changed files" if changed else "")


def archive_of(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(f"{file.name}.tar.gz")


def save(file: pathlib.Path, side: Side, inputs: dict[str, str], results: dict[str, dict]) -> None:
    """Write FILE, and beside it an archive of the files made, for `unpack`.

    inputs: name -> text. results: job -> {"asked": ..., "values": ..., "seconds": ...}.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive_of(file), "w:gz") as tar:
        for name in MADE:
            if (side.folder / name).exists():
                tar.add(side.folder / name, name)
    content = {
        "format": FORMAT,
        "commit": commit(side.checkout),
        "machine": machine(),
        "inputs": inputs,
        "jobs": results,
        "archive": hashlib.sha256(archive_of(file).read_bytes()).hexdigest(),
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def load(file: pathlib.Path) -> dict:
    """Read a record written by `save`.

    Raise RecordError if the file is no record, or if it was recorded with other software or on
    another kind of CPU, where bits may differ.
    """
    try:
        content = json.loads(file.read_text())
        number = content["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{file} is no record that --record wrote ({error!r})") from None
    if number != FORMAT:
        raise RecordError(f"{file} has format {number}, expected {FORMAT}: record it again")
    here, there = machine(), content["machine"]
    others = [
        f"{name} is {here.get(name)!r} here and {there.get(name)!r} there"
        for name in here | there
        if here.get(name) != there.get(name)
    ]
    if others:
        raise RecordError(
            f"{file} was recorded with other software or on another kind of CPU, where bits may "
            f"differ: {'; '.join(others)}. Give the other checkout itself, or record it again here"
        )
    return content


def unpack(file: pathlib.Path, content: dict, side: Side, jobs: Sequence[Job]) -> None:
    """Extract the results and the files made into the side's folder.

    A job that is not in the record, or was recorded with other settings, is marked as failed.
    Raise RecordError if the archive is missing or was not written with FILE.
    """
    archive = archive_of(file)
    if not archive.exists():
        raise RecordError(f"{archive}, which belongs to {file}, is missing: copy it too")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != content["archive"]:
        raise RecordError(f"{archive} was not written with {file}: copy both again")
    with tarfile.open(archive) as tar:
        tar.extractall(side.folder, filter="data")
    for job in (job for job in jobs if not job.of_other):
        result = content["jobs"].get(job.name)
        if result is None:
            result = failure(f"the record has no job {job.name}: record it again")
        elif result["asked"] != asked(job):
            result = failure(
                f"recorded as {result['asked']}, asked now: {asked(job)}; record again"
            )
        side.write(job.name, result)
