"""The gcloud commands of a run as argv lists, and one way to call them. Flags as in Google Cloud SDK 528 (GA track)."""

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
LABEL = "openbook-run"  # of every resource
RUN = uuid.uuid4().hex[:12]  # this program's own id


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds. poll: between looks at the state; call: limit of a short gcloud call, and how long what a lost call did is watched for;
    transfer: limit of copying and of deleting; settle: for other workers to show their errors; patience: describe calls in a row that
    may fail."""

    poll: float = 15.0
    call: float = 120.0
    transfer: float = 900.0
    settle: float = 5.0
    tick: float = 0.2
    patience: int = 5


@dataclasses.dataclass(frozen=True)
class Pod:
    """One queued resource and its single TPU, both called name. tried: earlier ones of this run, by the same name."""

    name: str
    target: Target
    zone: str
    project: str = ""
    tried: int = 0

    @property
    def label(self) -> str:
        """The value of LABEL that tells this resource from any other of its name."""
        return f"{RUN}-{self.tried}"

    def _gcloud(self, *words: str) -> list[str]:
        place = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return ["gcloud", "compute", "tpus", *words, *place, "--quiet"]

    def create(self, wait_hours: float) -> list[str]:
        """Asks for the TPU; the request lapses by itself after wait_hours."""
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
        """JSON: {"state": {"state": "ACTIVE", ...}}."""
        return self._gcloud("queued-resources", "describe", self.name, "--format=json(state)")

    def describe(self) -> list[str]:
        """JSON: all that is known of it, with its labels."""
        return self._gcloud("queued-resources", "describe", self.name, "--format=json")

    def endpoints(self) -> list[str]:
        """JSON: {"networkEndpoints": [one a worker]}."""
        return self._gcloud("tpu-vm", "describe", self.name, "--format=json(networkEndpoints)")

    def delete(self) -> list[str]:
        """Deletes the request and its TPU, and waits until they are gone."""
        return self._gcloud("queued-resources", "delete", self.name, "--force")

    def copy(self, files: Sequence[str]) -> list[str]:
        """Copies files into the home directory of every worker, keeping their modes."""
        return self._gcloud("tpu-vm", "scp", *files, f"{self.name}:", "--worker=all")

    def fetch(self, path: str, into: str) -> list[str]:
        """Copies a file or directory of FOLDER on worker 0 into the local directory `into`."""
        return self._gcloud(
            "tpu-vm", "scp", "--recurse", f"{self.name}:{FOLDER}/{path}", into, "--worker=0"
        )

    def ssh(self, worker: int | str, command: str) -> list[str]:
        """Runs command in the shell of one worker ("all": of every worker, output at the end)."""
        alive = "--ssh-flag=-o ServerAliveInterval=30 -o ServerAliveCountMax=4"
        return self._gcloud(
            "tpu-vm", "ssh", self.name, f"--worker={worker}", alive, f"--command={command}"
        )


def install_command(archive: str) -> str:
    """Shell text: unpacks the archive from the home directory into FOLDER and installs it with Python 3.11 and JAX for TPU.

    It can run twice: gcloud runs a command again when the connection breaks.
    """
    return "\n".join(
        (
            f"set -e; rm -rf {FOLDER}; mkdir {FOLDER}; tar -xzf {shlex.quote(archive)} -C {FOLDER}; cd {FOLDER}",
            "python3 -m pip install --quiet --user 'uv>=0.8'",
            "python3 -m uv venv --quiet --python 3.11 .venv",
            "if [ -f requirements.lock ]; then python3 -m uv pip install --quiet --python .venv --require-hashes -r requirements.lock; fi",
            "python3 -m uv pip install --quiet --python .venv --editable '.[tpu]'",
        )
    )


def run_command(command: Sequence[str], secrets: str = "") -> str:
    """Shell text: runs the command in FOLDER with the environment of the file secrets, which is removed once read.

    gcloud runs a command again when the connection breaks or the command ends with 255. A second training beside the first would only
    find the TPU busy, so a second start ends with 76 and says why.
    """
    again = "this worker was started before: the connection broke, or the command ended with exit code 255"
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
    """What one gcloud call gave. returncode 124: it did not answer in time and was ended."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """Its last line of complaint."""
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines() if line.strip()]
        return next(
            (line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "nothing"
        )


def call(argv: Sequence[str], timeout: float) -> Answer:
    """Runs gcloud to its end, in its own session so that Ctrl-C reaches only us; ends it, and what it started, after timeout seconds."""
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
    """(the object gcloud printed, '') or ({}, why there is none)."""
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
    """Kills a process started in its own session with everything it started, and reaps it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
