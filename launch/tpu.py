"""--on=tpu: create a TPU pod, run the command on all its workers, and always delete the pod.

The queued resource is deleted however the run ends: success, failure, Ctrl-C, SIGTERM, a closed
terminal or an exception. If that fails, the command to delete it is printed. kill -9 of this
program leaves it, so that command is also printed at the start. Resources have a label with the
run's id. After a create with a lost answer, only resources with this label are used or deleted.

Exit codes: the failing worker's own; 0 success; 69 the TPU never became ready; 70 gcloud failed;
71 the TPU could not be deleted; 75 preempted (or the command returned 75, "resume me") with no
retries left; 124 --max-hours reached; 129, 130 and 143 for SIGHUP, SIGINT and SIGTERM.
"""

import dataclasses
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.creation import NOT_FOUND, create
from launch.errors import LaunchError
from launch.gcloud import Answer, Pod, Timing, ask, call, install_command, run_command
from launch.interrupt import Interrupted, Signals, catch_signals
from launch.source import read_source, write_archive
from launch.workers import report, run_on_workers

NOT_READY, CLOUD, LEFT_BEHIND, PREEMPTED, OUT_OF_TIME = 69, 70, 71, 75, 124
STATES = {  # state of a queued resource -> action; for an unknown state, wait until --wait-hours
    "CREATING": "wait",
    "ACCEPTED": "wait",
    "WAITING_FOR_RESOURCES": "wait",
    "PROVISIONING": "wait",
    "STATE_UNSPECIFIED": "wait",
    "ACTIVE": "run",
    "FAILED": "give up",
    "DELETING": "give up",
    "SUSPENDING": "preempted",
    "SUSPENDED": "preempted",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Command with its limits. env: environment variables to pass. retries: after preemptions."""

    pod: Pod
    command: tuple[str, ...]
    max_hours: float = 24.0
    wait_hours: float = 6.0
    retries: int = 0
    env: tuple[str, ...] = ()


class _Over(Exception):
    """End of the run. code: exit code. The message is the reason."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def run_tpu(job: Job, timing: Timing) -> int:
    """Run the job; return its exit code (see above). Raises LaunchError for an invalid job."""
    _check(job)
    if not shutil.which("gcloud"):
        raise LaunchError(
            "--on=tpu needs gcloud on PATH: https://cloud.google.com/sdk/docs/install, then "
            "gcloud auth login"
        )
    source = read_source(Path.cwd())
    print(f"code: {source}\n{_disk_note(job)}", end="")
    with tempfile.TemporaryDirectory(prefix="openbook-") as folder, catch_signals() as signals:
        files = [str(Path(folder, f"{job.pod.name}.tar.gz"))]
        write_archive(source, Path(files[0]))
        if job.env:
            files.append(_write_secrets(job, Path(folder)))
        clock = _Clock(job.max_hours * 3600)
        for tried in range(job.retries + 1):
            if signals.came:
                return 128 + signals.came
            own = dataclasses.replace(job, pod=dataclasses.replace(job.pod, tried=tried))
            code = _one_try(own, files, timing, signals, clock)
            if code != PREEMPTED or tried == job.retries:
                break
            print(f"preempted: try {tried + 2} of {job.retries + 1}", file=sys.stderr, flush=True)
        return 128 + signals.came if signals.came else code


def print_plan(job: Job) -> None:
    """Print every command of the run in order, for a shell; call only git."""
    _check(job)
    pod, name = job.pod, job.pod.name
    files = [f"/tmp/{name}.tar.gz"] + ([f"/tmp/{name}.env"] if job.env else [])
    try:
        code = str(read_source(Path.cwd()))
    except LaunchError as error:  # a plan can be printed outside a checkout
        code = f"none that could be copied: {error}"
    print(f"# code: {code}\ngit ls-files -z | tar --null --files-from=- -czf {files[0]}")
    if job.env:
        print(
            f"# values of {', '.join(job.env)}, readable by you alone\n(umask 077; declare -px "
            f"{shlex.join(job.env)} > {files[1]})"
        )
    print(f"# waits at most {job.wait_hours:g} h for it\n{shlex.join(pod.create(job.wait_hours))}")
    print(
        f"# until ACTIVE\n{shlex.join(pod.state())}\n# how many workers\n"
        f"{shlex.join(pod.endpoints())}\n{shlex.join(pod.copy(files))}"
    )
    print("# the real run gives every worker a process of its own, so that output comes at once")
    print(shlex.join(pod.ssh("all", install_command(f"{name}.tar.gz"))))
    print("".join(f"# {line}\n" for line in _disk_note(job).splitlines()), end="")
    print(
        f"# at most {job.max_hours:g} h\n"
        f"{shlex.join(pod.ssh('all', run_command(job.command, f'{name}.env' if job.env else '')))}"
    )
    print(f"# on every way out\n{shlex.join(pod.delete())}")


@dataclasses.dataclass
class _Clock:
    """TPU time. left: seconds of --max-hours that remain for all tries."""

    left: float
    since: float | None = None

    def check(self) -> None:
        if self.since is not None and time.monotonic() - self.since > self.left:
            raise _Over(
                OUT_OF_TIME,
                "--max-hours reached; the same command goes on from its last checkpoint",
            )

    def stop(self) -> None:
        if self.since is not None:
            self.left, self.since = self.left - (time.monotonic() - self.since), None


def _one_try(
    job: Job, files: Sequence[str], timing: Timing, signals: Signals, clock: _Clock
) -> int:
    """Create, run and delete; return the exit code, or LEFT_BEHIND if the delete failed.

    LEFT_BEHIND replaces 0 and PREEMPTED only. Signals interrupt only the part between create and
    delete; the delete always runs to its end.
    """
    pod, ours, left = job.pod, True, False
    print(
        f"asking for {pod.target.accelerator} ({pod.target.capacity}) as {pod.name} in {pod.zone}"
    )
    print(f"should this program be killed, delete it with: {shlex.join(pod.delete())}", flush=True)
    try:
        signals.doing = f"creating {pod.name}"
        created = create(pod, job.wait_hours, timing)
        ours = created.ours
        if created.error:
            raise _Over(CLOUD, created.error)
        with signals.may_interrupt():
            _wait_until_active(job, timing)
            clock.since = time.monotonic()
            code = _use(job, files, timing, clock)
    except _Over as over:
        print(f"error: {over}", file=sys.stderr, flush=True)
        code = over.code
    except Interrupted as interrupted:
        code = 128 + interrupted.number
    finally:
        signals.doing = f"deleting {pod.name}"
        if ours:
            left = not _delete(pod, timing)
        clock.stop()
    return LEFT_BEHIND if left and code in (0, PREEMPTED) else code


def _delete(pod: Pod, timing: Timing) -> bool:
    """Delete the queued resource in up to three tries. If it fails, print advice, return False."""
    answer = Answer(0, "", "")
    for attempt in range(3):
        if attempt:
            time.sleep(min(timing.poll, 10.0))
        answer = call(pod.delete(), timing.transfer)
        # After a lost answer the resource may already be deleted, and the next delete then fails.
        if (
            not answer.returncode
            or NOT_FOUND.search(answer.stderr)
            or NOT_FOUND.search(ask(pod.state(), timing.call)[1])
        ):
            print(f"{pod.name} is deleted", flush=True)
            return True
    print(
        f"error: {pod.name} COULD NOT BE DELETED and may cost money: {answer.said}", file=sys.stderr
    )
    print(f"delete it with:\n  {shlex.join(pod.delete())}", file=sys.stderr, flush=True)
    return False


def _wait_until_active(job: Job, timing: Timing) -> None:
    """Wait until the TPU is ready; raise _Over if it never will be."""
    deadline, shown, wrong = time.monotonic() + job.wait_hours * 3600, "", 0
    while True:
        state, detail = _state(job.pod, timing)
        wrong = wrong + 1 if not state else 0
        if wrong >= timing.patience:
            raise _Over(
                CLOUD,
                f"the state of {job.pod.name} could not be read {wrong} times in a row: {detail}",
            )
        action = STATES.get(state, "wait")
        if (state or detail) != shown:
            shown = state or detail
            note = (
                ""
                if state in STATES or not state
                else " (a state this program does not know: waiting)"
            )
            print(f"{job.pod.name}: {shown}{note}", flush=True)
        if action == "run":
            return
        if action == "preempted":
            raise _Over(PREEMPTED, f"{job.pod.name} was preempted before it was ready ({state})")
        if action == "give up":
            raise _Over(NOT_READY, f"{job.pod.name} is {state}{f': {detail}' if detail else ''}")
        if time.monotonic() > deadline:
            raise _Over(
                NOT_READY,
                f"{job.pod.name} was not ready within --wait-hours={job.wait_hours:g} (last "
                f"state: {shown})",
            )
        time.sleep(timing.poll)


def _state(pod: Pod, timing: Timing) -> tuple[str, str]:
    """(state, detail) of the queued resource; ('', reason) if it cannot be read."""
    found, why = ask(pod.state(), timing.call)
    state = found.get("state")
    if isinstance(state, dict) and isinstance(state.get("state"), str):
        error = (state.get("failedData") or {}).get("error") or {}
        return state["state"], str(error.get("message", ""))
    return "", why or f"gcloud described it without a state: {json.dumps(found)[:200]}"


def _use(job: Job, files: Sequence[str], timing: Timing, clock: _Clock) -> int:
    """Copy, install and run; return 0, a failing worker's exit code, or PREEMPTED."""
    workers = _count_workers(job.pod, timing)
    print(f"{job.pod.name}: {workers} workers, copying the code", flush=True)
    copied = call(job.pod.copy(files), timing.transfer)
    if copied.returncode:
        raise _Over(
            PREEMPTED if _preempted(job, timing) else CLOUD,
            f"the code could not be copied to {job.pod.name}: {copied.said}",
        )
    secrets = f"{job.pod.name}.env" if job.env else ""
    values = [line for name in job.env for line in os.environ[name].splitlines() if len(line) > 3]
    for what, command in (
        ("install", install_command(f"{job.pod.name}.tar.gz")),
        ("run", run_command(job.command, secrets)),
    ):
        print(f"{job.pod.name}: {what}", flush=True)
        commands = [job.pod.ssh(number, command) for number in range(workers)]
        failed = run_on_workers(
            commands,
            _watch(job, timing, clock),
            secrets=values,
            settle=timing.settle,
            tick=timing.tick,
        )
        if failed and _preempted(job, timing):
            raise _Over(PREEMPTED, f"{job.pod.name} was preempted")
        if what == "run":
            _fetch(job, timing)
        if failed:
            report(failed, workers)
            codes = [
                worker.ended
                for worker in failed
                if worker.ended is not None and 0 < worker.ended < 256
            ]
            return codes[0] if codes else 1
    return 0


def _watch(job: Job, timing: Timing, clock: _Clock) -> Callable[[], None]:
    """Check to call while workers run: time, and at every poll preemption (ssh may hang then)."""
    next_look = time.monotonic() + timing.poll

    def watch() -> None:
        nonlocal next_look
        clock.check()
        if time.monotonic() > next_look:
            if STATES.get(_state(job.pod, timing)[0]) == "preempted":
                raise _Over(PREEMPTED, f"{job.pod.name} was preempted")
            next_look = time.monotonic() + timing.poll

    return watch


def _preempted(job: Job, timing: Timing) -> bool:
    """Whether a failure was a preemption. The state lags, so a spot TPU is queried three times."""
    for look in range(3 if job.pod.target.capacity == "spot" else 1):
        if look:
            time.sleep(timing.poll)
        if STATES.get(_state(job.pod, timing)[0]) == "preempted":
            return True
    return False


def _own_workdir(command: Sequence[str]) -> str:
    """The command's --workdir if it is relative, so on a worker's disk; else ''."""
    for i, word in enumerate(command):
        path = (
            word.removeprefix("--workdir=")
            if word.startswith("--workdir=")
            else "".join(command[i + 1 : i + 2]) * (word == "--workdir")
        )
        if path:
            return (
                ""
                if "://" in path or path.startswith(("/", "~", "-")) or ".." in Path(path).parts
                else path
            )
    return ""


def _disk_note(job: Job) -> str:
    path = _own_workdir(job.command)
    if not path:
        return ""
    return (
        f"note: --workdir={path} is on the TPU's own disk. Worker 0's is copied here when the "
        "command has ended, and lost when it is "
        "preempted or interrupted; with several workers, or to resume, use "
        "--workdir=gs://BUCKET/...\n"
    )


def _fetch(job: Job, timing: Timing) -> None:
    """Copy a relative work directory from worker 0 to this machine; only report a failure."""
    if path := _own_workdir(job.command):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        copied = call(job.pod.fetch(path, f"{Path(path).parent}/"), timing.transfer)
        print(
            f"{path} is copied here"
            if not copied.returncode
            else f"error: {path} could not be copied here: {copied.said}",
            flush=True,
        )


def _count_workers(pod: Pod, timing: Timing) -> int:
    why = ""
    for attempt in range(timing.patience):
        if attempt:
            time.sleep(timing.poll)
        found, why = ask(pod.endpoints(), timing.call)
        endpoints = found.get("networkEndpoints")
        if isinstance(endpoints, list) and endpoints:
            return len(endpoints)
    raise _Over(
        CLOUD, f"the workers of {pod.name} could not be listed: {why or 'gcloud listed none'}"
    )


def _write_secrets(job: Job, folder: Path) -> str:
    path = folder / f"{job.pod.name}.env"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"export {name}={shlex.quote(os.environ[name])}\n" for name in job.env)
    return str(path)


def _check(job: Job) -> None:
    for name in job.env:
        if not name.isidentifier() or not name.isascii():
            raise LaunchError(
                f"--env={name}: expected the name of an environment variable; its value is read "
                "here and never put on a command line"
            )
        if name not in os.environ:
            raise LaunchError(
                f"--env={name}: there is no such variable in the environment; export it first"
            )
    if not 0 <= job.retries <= 1000:
        raise LaunchError(f"--retries={job.retries}: expected a number from 0 to 1000")
    if not job.pod.zone:
        raise LaunchError(
            "--on=tpu needs --zone=ZONE (gcloud compute tpus locations list names them), or "
            "CLOUDSDK_COMPUTE_ZONE set"
        )
