"""Run the stages of a study in order, skip finished ones, and keep study.json.

The rules of resuming are in launch/study.py.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from launch.child import Ended, run_child
from launch.errors import LaunchError, nearest, unread
from launch.stages import (
    Stage,
    Study,
    configs,
    digest,
    digest_by_files,
    fingerprint,
    resolved,
    size,
)

MARKS = {
    "pending": "[dim]·[/]",
    "running": "[cyan]▸[/]",
    "done": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "interrupted": "[yellow]■[/]",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def run_chain(
    study: Study, start: str = "", only: str = "", *, silence: float = 15.0, grace: float = 60.0
) -> int:
    """Run the study, and return the exit code (see launch/study.py).

    start: rerun this stage and all after it. only: rerun only this stage. silence: seconds without
    output before a progress line. grace: seconds for a stage to end after a signal.
    Raises LaunchError for an unknown stage name, and for a working directory of another study or in
    use.
    """
    names = [stage.name for stage in study.stages]
    for wanted in (start, only):
        if wanted and wanted not in names:
            raise LaunchError(
                f"stage {wanted!r} is not in study {study.name!r}{nearest(wanted, names)}; its "
                f"stages: {', '.join(names)}"
            )
    console = _Console(highlight=False, soft_wrap=True)
    (study.workdir / "logs").mkdir(parents=True, exist_ok=True)
    with _alone_in(study.workdir) as lock:
        if named := [config for stage in study.stages for config in configs(stage)]:
            resolved(named[0], named[1:])
        record = _read_record(study)
        record["state"], began = "running", time.monotonic()
        for entry in record["stages"]:
            if entry["name"] == only or (
                start and names.index(entry["name"]) >= names.index(start)
            ):
                entry["status"] = "pending"
        try:
            _list_stages(console, study, record)
            code = _run_stages(console, study, record, only, lock, silence, grace)
        except BrokenPipeError:  # between two stages; during one, it is stopped
            unread()
            code = 128 + signal.SIGPIPE
        record["state"] = "done" if not code else "interrupted" if code > 128 else "failed"
        record["seconds"] = round(sum(entry["seconds"] or 0.0 for entry in record["stages"]), 3)
        _write_record(study, record)
    if not code:
        console.print(
            f"[green]study {escape(study.name)} done[/] in {_clock(time.monotonic() - began)}; "
            f"record: {study.workdir}/study.json"
        )
    return code


def _run_stages(
    console: Console,
    study: Study,
    record: dict[str, Any],
    only: str,
    lock: int,
    silence: float,
    grace: float,
) -> int:
    for i, stage in enumerate(study.stages):
        entry = record["stages"][i]
        if only and stage.name != only:
            continue
        if not _why_run(study, i, record):
            place, seconds = f"{i + 1}/{len(study.stages)}", _clock(entry["seconds"])
            console.print(f"{MARKS['done']} {place} {stage.name}: done earlier, in {seconds}")
            continue
        if code := _run_stage(console, study, i, record, lock, silence, grace):
            return code
    return 0


def _run_stage(
    console: Console,
    study: Study,
    i: int,
    record: dict[str, Any],
    lock: int,
    silence: float,
    grace: float,
) -> int:
    stage, entry, place = study.stages[i], record["stages"][i], f"{i + 1}/{len(study.stages)}"
    log = study.workdir / "logs" / f"{stage.name}.log"
    expected, left = _expected(study, record, i)
    entry.update(
        _new_entry(study, stage),
        status="running",
        run=uuid.uuid4().hex,
        used=_used(study, i, record),
    )
    about = f" [dim]{escape(stage.about)}[/]" if stage.about else ""
    console.print(
        f"{MARKS['running']} {place} [bold]{stage.name}[/]{about} [dim](about "
        f"{_clock(expected)}; study about {_clock(left)} left)[/]"
    )
    missing = [path for path in stage.inputs if not Path(path).exists()]
    if missing:
        ended = Ended(2, 0.0, 0, _missing(study, stage, missing[0]))
    else:
        _write_record(study, record)

        def beat(seconds: float) -> str:
            return (
                f"  {stage.name}: {_clock(seconds)} so far, about {_clock(expected - seconds)}; "
                f"study about {_clock(left - seconds)} left"
            )

        ended = run_child(
            [sys.executable, "-m", stage.module, *stage.args],
            log,
            beat,
            silence=silence,
            grace=grace,
            keep_open=(lock,),
        )
    entry.update(
        seconds=round(ended.seconds, 3),
        returncode=ended.returncode,
        bytes=sum(size(path) for path in stage.outputs),
    )
    unwritten = [path for path in stage.outputs if not Path(path).exists()]
    if ended.stopped_by:
        entry.update(
            status="interrupted", error=f"stopped by {signal.Signals(ended.stopped_by).name}"
        )
    elif ended.returncode or unwritten:
        entry.update(status="failed", error=_error(ended, unwritten))
    else:
        entry.update(
            status="done",
            made={
                path: fingerprint(path) if Path(path).is_file() else "directory"
                for path in stage.outputs
            },
        )
    _write_record(study, record)
    mark = MARKS[entry["status"]]
    console.print(
        f"{mark} {place} {stage.name}: {entry['status']} after {_clock(ended.seconds)}, "
        f"{entry['bytes']:,} bytes"
    )
    if entry["status"] == "done":
        return 0
    if ended.stopped_by == signal.SIGPIPE:
        return 128 + ended.stopped_by
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    stderr.print(f"[red]stage {stage.name} {entry['status']}:[/] {escape(entry['error'])}")
    stderr.print(
        f"  log: {log}\n  run the same line again to go on from here"
        if not missing
        else "  nothing was run"
    )
    return 128 + ended.stopped_by if ended.stopped_by else 1


def _why_run(study: Study, i: int, record: dict[str, Any]) -> str:
    """Reason to run stage i; '' if it is done and nothing that it depends on has changed."""
    stage, entry = study.stages[i], record["stages"][i]
    if entry["status"] != "done":
        return f"it is {entry['status']}"
    if entry["digest"] == digest_by_files(stage):  # recorded by a version that did not read configs
        entry["digest"] = digest(stage)
    if entry["digest"] != digest(stage):
        return "its command or its config has changed"
    if entry["used"] != _used(study, i, record):
        return "an input has changed"
    for path in stage.outputs:
        made = entry["made"].get(path)
        if not Path(path).exists() or (made != "directory" and made != fingerprint(path)):
            return f"its output {path} has changed"
    return ""


def _used(study: Study, i: int, record: dict[str, Any]) -> dict[str, str]:
    """Input path of stage i -> run of the earlier stage that makes it, or its fingerprint."""
    used = {}
    for path in study.stages[i].inputs:
        maker = next(
            (
                j
                for j in reversed(range(i))
                if any(_within(path, made) for made in study.stages[j].outputs)
            ),
            None,
        )
        used[path] = (
            fingerprint(path) if maker is None else f"made in run {record['stages'][maker]['run']}"
        )
    return used


def _within(path: str, other: str) -> bool:
    """Whether the paths are equal or one contains the other."""
    one, two = Path(os.path.abspath(path)), Path(os.path.abspath(other))
    return one.is_relative_to(two) or two.is_relative_to(one)


def _missing(study: Study, stage: Stage, path: str) -> str:
    maker = next(
        (
            s.name
            for s in study.stages
            if s.name != stage.name and any(_within(path, made) for made in s.outputs)
        ),
        "",
    )
    advice = (
        f"stage {maker} makes it: run that first (--from={maker})"
        if maker
        else "put it there, or correct the stage's inputs"
    )
    return f"its input {path} does not exist; {advice}"


def _error(ended: Ended, unwritten: list[str]) -> str:
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    if ended.returncode:
        return ended.error or f"exit code {ended.returncode} without a word"
    return f"it ended well but did not write {', '.join(unwritten)}, which its outputs declare"


def _expected(study: Study, record: dict[str, Any], i: int) -> tuple[float, float]:
    """(expected seconds of stage i, of all unfinished stages from i on).

    The hints are scaled by the ratio of actual to expected time so far. 30 seconds at ratio 1 are
    added, so that short stages have little influence.
    """
    done = [
        (e["seconds"], s.seconds)
        for e, s in zip(record["stages"], study.stages, strict=True)
        if e["status"] == "done"
    ]
    scale = (sum(actual for actual, _ in done) + 30) / (sum(hint for _, hint in done) + 30)
    hints = [
        s.seconds * scale
        for j, s in enumerate(study.stages)
        if j == i or (j > i and record["stages"][j]["status"] != "done")
    ]
    return hints[0], sum(hints)


def _list_stages(console: Console, study: Study, record: dict[str, Any]) -> None:
    console.print(
        f"[bold]study {escape(study.name)}[/] in {study.workdir}: {len(study.stages)} stages"
    )
    width = max(len(stage.name) for stage in study.stages)
    for i, (stage, entry) in enumerate(zip(study.stages, record["stages"], strict=True)):
        mark = MARKS["done" if entry["status"] == "done" else "pending"]
        console.print(
            f"  {mark} {i + 1} {stage.name:<{width}}  [dim]about {_clock(stage.seconds):>5}  "
            f"{escape(stage.about)}[/]"
        )


def _clock(seconds: float | None) -> str:
    seconds = max(0, round(seconds or 0))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


def _new_entry(study: Study, stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "about": stage.about,
        "command": shlex.join(["python", "-m", stage.module, *stage.args]),
        "status": "pending",
        "seconds": None,
        "bytes": 0,
        "outputs": list(stage.outputs),
        "returncode": None,
        "error": "",
        "log": str(study.workdir / "logs" / f"{stage.name}.log"),
        "digest": digest(stage),
        "run": "",
        "used": {},
        "made": {},
    }


def _read_record(study: Study) -> dict[str, Any]:
    """Read study.json, in the order of the current stages. Missing entries are new."""
    path = study.workdir / "study.json"
    earlier: dict[str, Any] = {}
    if path.exists():
        try:
            old = json.loads(path.read_text())
            name, earlier = old["study"], {entry["name"]: entry for entry in old["stages"]}
        except (ValueError, KeyError, TypeError) as error:
            raise LaunchError(
                f"{path} is not a record of a study ({type(error).__name__}: {error}); move it "
                "away to start anew"
            ) from error
        if name != study.name:
            raise LaunchError(
                f"{study.workdir} holds study {name!r}, not {study.name!r}; choose another "
                "--workdir"
            )
    stages = []
    for stage in study.stages:
        fresh = _new_entry(study, stage)
        entry = earlier.get(stage.name, fresh)
        if set(entry) != set(fresh):  # written by another version
            entry = fresh
        stages.append({**entry, "status": "interrupted"} if entry["status"] == "running" else entry)
    return {"study": study.name, "state": "pending", "seconds": None, "stages": stages}


def _write_record(study: Study, record: dict[str, Any]) -> None:
    path = study.workdir / "study.json"
    temporary = path.with_name(f".study.json.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def _alone_in(workdir: Path) -> Generator[int]:
    """Lock workdir/.lock, and yield its file descriptor.

    Stages inherit the lock, so a stage that outlives a killed study still keeps others out.
    """
    with (workdir / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LaunchError(
                f"{workdir} is in use by another study, or by a stage a killed study left "
                "behind; wait or end it"
            ) from error
        yield lock.fileno()
