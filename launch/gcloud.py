"""gcloud commands as argv lists, and a function to call them (Google Cloud SDK 528, GA)."""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import uuid
from collections.abc import Sequence
from typing import Any

from launch.target import Target

FOLDER = "openbook-run"  # in the home directory of every worker
LABEL = "openbook-run"  # key of the label of every resource
RUN = uuid.uuid4().hex[:12]  # id of this process, in the label's value


@dataclasses.dataclass(frozen=True)
class Timing:
    """Time limits in seconds.

    poll: between state queries. call: limit of a short gcloud call, and of the search for a
    resource after a lost answer. transfer: limit of copying and deleting. settle: for other workers
    to print their errors. tick: between checks of workers.
    patience: number of consecutive failed queries that are tolerated.
    """

    poll: float = 15.0
    call: float = 120.0
    transfer: float = 900.0
    settle: float = 5.0
    tick: float = 0.2
    patience: int = 5


@dataclasses.dataclass(frozen=True)
class Pod:
    """Queued resource and its single TPU, both called name. tried: number of earlier tries."""

    name: str
    target: Target
    zone: str
    project: str = ""
    tried: int = 0

    @property
    def label(self) -> str:
        """Value of LABEL that identifies this resource."""
        return f"{RUN}-{self.tried}"

    def _gcloud(self, *words: str) -> list[str]:
        place = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return ["gcloud", "compute", "tpus", *words, *place, "--quiet"]

    def create(self, wait_hours: float) -> list[str]:
        """Request the TPU; the request expires after wait_hours."""
        capacity = {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}[
            self.target.capacity
        ]
        return self._gcloud(
            *("queued-resources", "create", self.name),
            f"--node-id={self.name}",
            f"--accelerator-type={self.target.accelerator}",
            f"--runtime-version={self.target.image}",
            *capacity,
            f"--valid-until-duration={round(wait_hours * 3600)}s",
            f"--labels={LABEL}={self.label}",
            "--async",
        )

    def state(self) -> list[str]:
        """Query the state: JSON {"state": {"state": "ACTIVE", ...}}."""
        return self._gcloud("queued-resources", "describe", self.name, "--format=json(state)")

    def describe(self) -> list[str]:
        """Query all properties, including labels, as JSON."""
        return self._gcloud("queued-resources", "describe", self.name, "--format=json")

    def endpoints(self) -> list[str]:
        """Query the workers: JSON {"networkEndpoints": [one per worker]}."""
        return self._gcloud("tpu-vm", "describe", self.name, "--format=json(networkEndpoints)")

    def delete(self) -> list[str]:
        """Delete the request and its TPU, and wait until they are gone."""
        return self._gcloud("queued-resources", "delete", self.name, "--force")

    def copy(self, files: Sequence[str]) -> list[str]:
        """Copy files to the home directory of every worker, with their modes."""
        return self._gcloud("tpu-vm", "scp", *files, f"{self.name}:", "--worker=all")

    def fetch(self, path: str, into: str) -> list[str]:
        """Copy a file or directory of FOLDER on worker 0 to the local directory `into`."""
        return self._gcloud(
            "tpu-vm", "scp", "--recurse", f"{self.name}:{FOLDER}/{path}", into, "--worker=0"
        )

    def ssh(self, worker: int | str, command: str) -> list[str]:
        """Run command in the shell of one worker, or of all ("all", with output at the end)."""
        alive = "--ssh-flag=-o ServerAliveInterval=30 -o ServerAliveCountMax=4"
        return self._gcloud(
            "tpu-vm", "ssh", self.name, f"--worker={worker}", alive, f"--command={command}"
        )


def install_command(archive: str) -> str:
    """Shell command that unpacks the archive to FOLDER and installs it with Python 3.11 and JAX.

    It is idempotent, because gcloud runs a command again when the connection breaks.
    """
    return "\n".join(
        (
            f"set -e; rm -rf {FOLDER}; mkdir {FOLDER}; tar -xzf {shlex.quote(archive)} -C "
            f"{FOLDER}; cd {FOLDER}",
            "python3 -m pip install --quiet --user 'uv>=0.8'",
            "python3 -m uv venv --quiet --python 3.11 .venv",
            "if [ -f requirements.lock ]; then python3 -m uv pip install --quiet --python .venv "
            "--require-hashes -r requirements.lock; fi",
            "python3 -m uv pip install --quiet --python .venv --editable '.[tpu]'",
        )
    )


def run_command(command: Sequence[str], secrets: str = "") -> str:
    """Shell command that runs `command` in FOLDER, with the environment of the file `secrets`.

    The file is removed after it is read. gcloud runs a command again when the connection breaks or
    the command returns 255. A second training process would find the TPU busy, so a second start
    returns 76 with a message.
    """
    again = (
        "this worker was started before: the connection broke, or the command ended with exit "
        "code 255"
    )
    lines = [
        f"cd {FOLDER} || exit 77",
        f"mkdir .started 2>/dev/null || {{ echo 'error: {again}' >&2; exit 76; }}",
    ]
    if secrets:
        lines.append(f". ~/{shlex.quote(secrets)} && rm -f ~/{shlex.quote(secrets)} || exit 77")
    lines += ['export PATH="$PWD/.venv/bin:$PATH"', f"exec {shlex.join(command)}"]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Result of a gcloud call. returncode 124: it timed out and was killed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """Its last error line, else its last line."""
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines() if line.strip()]
        return next(
            (line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "nothing"
        )


def call(argv: Sequence[str], timeout: float) -> Answer:
    """Run gcloud to its end; kill it and its children after timeout seconds.

    It has its own session, so Ctrl-C does not reach it.
    """
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end_group(process)
            return Answer(124, "", f"ERROR: no answer within {timeout:.0f} s")
        except BaseException:
            end_group(process)
            raise
    return Answer(process.returncode, out, err)


def ask(argv: Sequence[str], timeout: float) -> tuple[dict[str, Any], str]:
    """(JSON object that gcloud printed, '') or ({}, reason why there is none)."""
    answer = call(argv, timeout)
    if answer.returncode:
        return {}, answer.said
    try:
        found = json.loads(answer.stdout)
    except ValueError:
        return {}, f"gcloud printed no JSON: {answer.stdout[:200]!r}"
    return (
        (found, "")
        if isinstance(found, dict)
        else ({}, f"gcloud printed no JSON object: {answer.stdout[:200]!r}")
    )


def end_group(process: subprocess.Popen) -> None:
    """Kill a process that has its own session, with all its children, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
