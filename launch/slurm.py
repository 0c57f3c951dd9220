"""--on=slurm:NxG: an sbatch script that runs the command under srun, with one task per GPU.

JAX finds its peers only inside srun. Slurm sends SIGTERM five minutes before the time limit and on
preemption. Training then saves a checkpoint and ends, and the script queues the job again. Training
resumes from its --workdir, which must be on a file system that all nodes share.
"""

import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from launch.errors import LaunchError
from launch.target import Target, this_python

JOB = re.compile(
    r"(?:Submitted batch job )?(\d+)(?:;([\w.-]+))?"
)  # output of sbatch --parsable, or what a wrapper leaves of it

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --gres=gpu:{tasks}
#SBATCH --exclusive
#SBATCH --time={minutes}
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={folder}/{name}-%j.log

srun --kill-on-bad-exit=1 {command}
code=$?
# 143: ended by SIGTERM; 75: stopped with a checkpoint to resume from
if [ "$code" -eq 143 ] || [ "$code" -eq 75 ]; then
    echo "stopped before its end: queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(
    target: Target, command: Sequence[str], name: str, max_hours: float, folder: Path
) -> str:
    """Text of the sbatch script, with the command quoted."""
    return SCRIPT.format(
        name=name,
        nodes=target.nodes,
        tasks=target.tasks,
        minutes=math.ceil(max_hours * 60),
        folder=folder,
        command=shlex.join(this_python(command)),
    )


def run_slurm(
    target: Target,
    command: Sequence[str],
    name: str,
    max_hours: float,
    dry_run: bool,
    folder: Path = Path("runs/launch"),
) -> int:
    """Write folder/name.sbatch and submit it; print the job's id and how to follow and stop it.

    Returns 0. dry_run: only print the script and the command.
    Raises LaunchError when sbatch is missing, fails, or prints no job id.
    """
    text = script(target, command, name, max_hours, folder)
    file = folder / f"{name}.sbatch"
    argv = ["sbatch", "--parsable", str(file)]
    if dry_run:
        print(f"# {file}:\n{text}\n# then:\n{shlex.join(argv)}")
        return 0
    if not shutil.which("sbatch"):
        raise LaunchError(
            "--on=slurm needs sbatch on PATH; run this on a login node of the cluster"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    unsure = (
        f"look with: squeue --me --name={name}; stop it with: scancel --name={name}; the script "
        f"is {file}"
    )
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"sbatch did not answer within 120 s, and whether it queued {name} is not known; "
            f"{unsure}"
        ) from error
    lines = (done.stdout + "\n" + done.stderr).splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    if done.returncode:
        raise LaunchError(
            f"sbatch ended with {done.returncode} and said: {said}; the script is {file}"
        )
    found = [
        match for line in done.stdout.splitlines() if (match := JOB.fullmatch(line.strip()))
    ]  # sites print banners around it
    if not found:
        raise LaunchError(
            f"sbatch ended with 0 and gave no id, but said: {said}; whether it queued {name} is "
            f"not known; {unsure}"
        )
    job, cluster = found[-1][1], f" --clusters={found[-1][2]}" if found[-1][2] else ""
    print(f"job {job}: {name} on {target.nodes} x {target.tasks} GPUs, script {file}")
    print(
        f"  follow: tail -F {folder}/{name}-{job}.log\n  state:  squeue --job={job}{cluster}\n  "
        f"stop:   scancel {job}{cluster}"
    )
    return 0
