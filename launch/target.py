"""Parse and check the value of --on and related flags."""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence

from launch.errors import LaunchError, nearest

# TPU generation -> runtime image of its VMs.
IMAGES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
CAPACITIES = ("on-demand", "spot", "reserved")
KINDS = ("local", "tpu", "slurm")


@dataclasses.dataclass(frozen=True)
class Target:
    """Where to run. kind: one of KINDS.

    tpu: accelerator and capacity. slurm: nodes and tasks (per node, one GPU each).
    """

    kind: str
    accelerator: str = ""
    capacity: str = "on-demand"
    nodes: int = 0
    tasks: int = 0

    @property
    def image(self) -> str:
        """Runtime image of the TPU's VMs."""
        return IMAGES[self.accelerator.split("-")[0]]


def parse_target(text: str) -> Target:
    """Parse local, tpu:ACCELERATOR[,spot|reserved|on-demand] or slurm:NODESxGPUS.

    Raises LaunchError, which says what was expected.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise LaunchError(
            f"--on={text}: unknown place {kind!r}{nearest(kind, KINDS)}; expected local, "
            "tpu:v5litepod-16,spot or slurm:2x8"
        )
    if kind == "local":
        if rest:
            raise LaunchError(f"--on={text}: local takes nothing after it")
        return Target("local")
    if kind == "slurm":
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d?)", rest)
        if not match:
            raise LaunchError(
                f"--on={text}: expected slurm:NODESxGPUS, such as slurm:2x8 for 2 nodes of 8 GPUs"
            )
        return Target("slurm", nodes=int(match[1]), tasks=int(match[2]))
    accelerator, *options = rest.split(",")
    match = re.fullmatch(r"([a-z0-9]+)-([1-9]\d{0,4})", accelerator)
    if not match:
        raise LaunchError(f"--on={text}: expected tpu:GENERATION-SIZE, such as tpu:v5litepod-16")
    if match[1] not in IMAGES:
        hint = (
            " (did you mean v5litepod?)"
            if match[1] in ("v5e", "v5lite")
            else nearest(match[1], IMAGES)
        )
        raise LaunchError(
            f"--on={text}: unknown TPU generation {match[1]!r}{hint}; one of {', '.join(IMAGES)} "
            "(newer ones run on GKE only)"
        )
    for option in options:
        if option not in CAPACITIES:
            raise LaunchError(
                f"--on={text}: unknown option {option!r}{nearest(option, CAPACITIES)}; one of "
                f"{', '.join(CAPACITIES)}"
            )
    if len(options) > 1:
        raise LaunchError(
            f"--on={text}: {' and '.join(options)} exclude each other; give one of "
            f"{', '.join(CAPACITIES)}"
        )
    return Target("tpu", accelerator=accelerator, capacity=options[0] if options else "on-demand")


def check_name(name: str) -> str:
    """Check the name of a run. Raises LaunchError for one that cannot name cloud resources."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,46}[a-z0-9])?", name):
        raise LaunchError(
            f"--name={name}: expected at most 48 lower-case letters, digits and dashes, "
            "beginning with a letter"
        )
    return name


def check_hours(flag: str, hours: float) -> float:
    """Check a number of hours. Raises LaunchError unless it is above 0 and at most 720."""
    if not 0 < hours <= 720:
        raise LaunchError(f"--{flag}={hours:g}: expected hours, more than 0 and at most 720")
    return hours


def this_python(command: Sequence[str]) -> list[str]:
    """Replace a leading `python` or `python3` by the current interpreter."""
    return (
        [sys.executable, *command[1:]]
        if os.path.basename(command[0]) == command[0] in ("python", "python3")
        else list(command)
    )
