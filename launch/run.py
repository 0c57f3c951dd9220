"""Run a command on this machine, a TPU pod or SLURM.

python -m launch.run --on=local | tpu:v5litepod-16,spot | slurm:2x8 [--dry-run] -- python -m
    lm.train ...
"""

import argparse
import getpass
import os
import re
import sys
import time
from collections.abc import Sequence

from launch.errors import LaunchError, one_line
from launch.gcloud import Pod
from launch.local import run_local
from launch.slurm import run_slurm
from launch.target import check_hours, check_name, parse_target
from launch.tpu import Job, Timing, print_plan, run_tpu


@one_line
def main(argv: Sequence[str] | None = None, timing: Timing | None = None) -> int:
    """Run the command after `--`; return its exit code, or one of launch/tpu.py."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words[: words.index("--")] if "--" in words else words)
    command = words[words.index("--") + 1 :] if "--" in words else []
    if not command:
        raise LaunchError(
            "no command: put it after `--`, as in --on=local -- python -m lm.train --config=... "
            "--workdir=..."
        )
    target = parse_target(args.on)
    _refuse_unused(args, target.kind)
    if target.kind == "local":
        return run_local(command, args.dry_run)
    name = check_name(args.name or _new_name())
    max_hours = check_hours("max-hours", 24.0 if args.max_hours is None else args.max_hours)
    if target.kind == "slurm":
        return run_slurm(target, command, name, max_hours, args.dry_run)
    pod = Pod(
        name, target, args.zone or os.environ.get("CLOUDSDK_COMPUTE_ZONE", ""), args.project or ""
    )
    job = Job(
        pod=pod,
        command=tuple(command),
        max_hours=max_hours,
        wait_hours=check_hours("wait-hours", 6.0 if args.wait_hours is None else args.wait_hours),
        retries=args.retries or 0,
        env=tuple(args.env or ()),
    )
    return print_plan(job) or 0 if args.dry_run else run_tpu(job, timing or Timing())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch.run", usage="%(prog)s --on=PLACE [options] -- COMMAND ...", allow_abbrev=False
    )
    parser.add_argument(
        "--on",
        required=True,
        help="local, tpu:v5litepod-16[,spot|reserved|on-demand], or slurm:NODESxGPUS",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the commands, ready to be pasted, and call nothing",
    )
    parser.add_argument("--name", help="tpu, slurm: name of the run (default: openbook-USER-TIME)")
    parser.add_argument(
        "--max-hours", type=float, help="tpu, slurm: stop after this many hours (default 24)"
    )
    parser.add_argument("--zone", help="tpu: the zone (default: CLOUDSDK_COMPUTE_ZONE)")
    parser.add_argument("--project", help="tpu: the project (default: gcloud's own)")
    parser.add_argument(
        "--wait-hours",
        type=float,
        help="tpu: give up when it is not ready after this many hours (default 6)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        help="tpu: new tries after preemptions; the command resumes from its --workdir (default 0)",
    )
    parser.add_argument(
        "--env",
        action="append",
        metavar="NAME",
        help="tpu: pass this variable on, in a file and never on a command line",
    )
    return parser


def _refuse_unused(args: argparse.Namespace, kind: str) -> None:
    """Raise LaunchError for a flag that would be ignored."""
    flags = ("name", "max_hours", "zone", "project", "wait_hours", "retries", "env")
    for flag in flags[{"local": 0, "slurm": 2, "tpu": 7}[kind] :]:
        if getattr(args, flag) is not None:
            raise LaunchError(
                f"--{flag.replace('_', '-')} has no meaning with --on={args.on}; leave it out"
            )


def _new_name() -> str:
    user = re.sub(r"[^a-z0-9]+", "", getpass.getuser().lower())[:16] or "user"
    return f"openbook-{user}-{time.strftime('%m%d-%H%M%S')}"


if __name__ == "__main__":
    sys.exit(main())
