"""--on=slurm:NxG: an sbatch script that runs the command under srun, one task a GPU, and is requeued until it ends by itself.

JAX finds its peers only inside srun. Slurm sends SIGTERM five minutes before the time limit or at a preemption; training then saves a
checkpoint and ends, the job is queued again, and training resumes from its --workdir, which must be on a file system all nodes share.
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
)  # what sbatch --parsable prints, and what a wrapper may leave of it

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
    """The text of the sbatch script; the command is quoted exactly."""
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
    """Writes folder/name.sbatch and submits it; prints the job's id and how to follow and stop it. Returns 0.

    dry_run: prints the script and the command instead and calls nothing. Raises LaunchError when sbatch is missing, refuses,
    or does not say what it did.
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
    unsure = f"look with: squeue --me --name={name}; stop it with: scancel --name={name}; the script is {file}"
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
            f"sbatch did not answer within 120 s, and whether it queued {name} is not known; {unsure}"
        ) from error
    lines = (done.stdout + "\n" + done.stderr).splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    if done.returncode:
        raise LaunchError(
            f"sbatch ended with {done.returncode} and said: {said}; the script is {file}"
        )
    found = [
        match for line in done.stdout.splitlines() if (match := JOB.fullmatch(line.strip()))
    ]  # sites put banners around it
    if not found:
        raise LaunchError(
            f"sbatch ended with 0 and gave no id, but said: {said}; whether it queued {name} is not known; {unsure}"
        )
    job, cluster = found[-1][1], f" --clusters={found[-1][2]}" if found[-1][2] else ""
    print(f"job {job}: {name} on {target.nodes} x {target.tasks} GPUs, script {file}")
    print(
        f"  follow: tail -F {folder}/{name}-{job}.log\n  state:  squeue --job={job}{cluster}\n  stop:   scancel {job}{cluster}"
    )
    return 0
