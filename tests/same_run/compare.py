"""Bitwise comparison of two results of a job, value by value."""

import difflib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from tests.same_run.jobs import Job
from tests.same_run.processes import Side

SAME, DIFFERS, FAILED = "same", "DIFFERS", "FAILED"
SHOWN = 70  # characters of a value in the table
ABSENT = "no value"


class Difference(NamedTuple):
    """Name of a value that differs, and the value in each checkout; ABSENT if there is none."""

    where: str
    here: object
    there: object


class Judged(NamedTuple):
    """Outcome of a comparison.

    verdict: SAME, DIFFERS or FAILED. seconds: of both sides. said: what was compared, or the first
    difference. lines: further lines of the table.
    """

    verdict: str
    seconds: float
    said: str
    lines: Sequence[str] = ()


def judged(job: Job, here: Side, there: Side, folder: pathlib.Path) -> Judged | None:
    """Compare a job; None until both sides have done it. Differences are written to `folder`."""
    twin = job.of_other or job.name
    results = [(side, name, side.result(name)) for side, name in ((here, job.name), (there, twin))]
    if any(result is None for _, _, result in results):
        return None
    results = results[:1] if here == there else results
    seconds = sum(result["seconds"] for _, _, result in results)
    failed = [one for one in results if "failed" in one[2]]
    if failed:
        side, name, result = failed[0]
        where = " and ".join(one[0].folder.name for one in failed)
        return Judged(FAILED, seconds, f"{where}: {result['failed']}", side.tail(name))
    values = [result["values"] for _, _, result in results]
    found = differences(values[0], values[-1])
    if not found:
        return Judged(SAME, seconds, f"{len(values[0])} values")
    files = write(folder, job.name, found, here, there)
    return Judged(DIFFERS, seconds, said(found, len(values[0])), [f"more in {f}" for f in files])


def differences(here: dict, there: dict) -> list[Difference]:
    """List the differences in the order of the values. Floats are compared without tolerance."""
    names = [*here, *(name for name in there if name not in here)]
    pairs = [Difference(n, here.get(n, ABSENT), there.get(n, ABSENT)) for n in names]
    return [pair for pair in pairs if repr(pair.here) != repr(pair.there)]


def said(found: list[Difference], count: int) -> str:
    """Describe the first difference and give the number of differences."""
    shown = [
        text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        for text in (repr(found[0].here), repr(found[0].there))
    ]
    return f"{found[0].where}: {shown[0]} here, {shown[1]} there; {len(found)} of {count} values"


def write(
    folder: pathlib.Path, name: str, found: list[Difference], here: Side, there: Side
) -> list[pathlib.Path]:
    """Write all differences to NAME.txt and the diff of the training step to NAME.diff."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.txt"]
    files[0].write_text(
        "".join(f"{d.where}\n  here  {d.here!r}\n  there {d.there!r}\n" for d in found)
    )
    programs = [side.folder / "programs" / f"{name}.mlir" for side in (there, here)]
    if all(file.exists() for file in programs):
        old, new = (file.read_text().splitlines(keepends=True) for file in programs)
        if changed := "".join(difflib.unified_diff(old, new, "there", "here", n=2)):
            files.append(folder / f"{name}.diff")
            files[1].write_text(changed)
    return files
