"""The sbatch script is accepted by Slurm and bash and carries the command unchanged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.run import main
from launch.slurm import script
from launch.target import Target

NASTY = [
    "two  words",
    "it's",
    '"q"',
    "$HOME",
    "`id`",
    ";ls",
    "a\nb",
    "naïve ☃",
    "-leading",
    "--",
    "*",
    "",
    "\\",
    "{name}",
    "%j",
]


def test_the_script_is_not_the_one_of_the_record():
    text = script(
        Target("slurm", nodes=2, tasks=8),
        ["train", "--note=two words"],
        "trial",
        1.5,
        Path("runs/launch"),
    )
    assert text.split("\n\n")[0] == (
        "#!/bin/bash\n#SBATCH --job-name=trial\n#SBATCH --nodes=2\n#SBATCH "
        "--ntasks-per-node=8\n#SBATCH --gres=gpu:8\n#SBATCH --exclusive\n"
        "#SBATCH --time=90\n#SBATCH --signal=TERM@300\n#SBATCH --requeue\n#SBATCH "
        "--open-mode=append\n"
        "#SBATCH --output=runs/launch/trial-%j.log"
    )
    assert "\nsrun --kill-on-bad-exit=1 train '--note=two words'\n" in text


def run_script(tmp_path: Path, command: list[str]) -> subprocess.CompletedProcess:
    """Run the script with fakes of srun, which runs its command, and scontrol, which echoes."""
    for name, text in (("srun", 'shift\nexec "$@"'), ("scontrol", 'echo "scontrol $*"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    file = tmp_path / "job.sbatch"
    file.write_text(
        script(Target("slurm", nodes=1, tasks=1), command, "trial", 24, Path("runs/launch"))
    )
    assert subprocess.run(["bash", "-n", file]).returncode == 0
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    return subprocess.run(["bash", file], capture_output=True, text=True, env=env)


def test_an_argument_arrives_changed(tmp_path):
    done = run_script(
        tmp_path, ["python", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *NASTY]
    )
    assert json.loads(done.stdout) == NASTY and done.returncode == 0


@pytest.mark.parametrize(
    "end, code, queued",
    [
        ("kill -TERM $$", 143, True),
        ("exit 75", 75, True),
        ("exit 1", 1, False),
        ("exit 0", 0, False),
    ],
)
def test_a_job_is_queued_again_when_it_should_not_be_or_the_reverse(tmp_path, end, code, queued):
    done = run_script(tmp_path, ["bash", "-c", end])
    assert done.returncode == code
    assert ("scontrol requeue 42" in done.stdout) == queued


def test_a_submission_does_not_say_how_to_follow_it(cloud, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["--on=slurm:2x8", "--name=trial", "--", "python", "-m", "lm.train"]) == 0
    assert cloud.calls() == [["--parsable", "runs/launch/trial.sbatch"]]
    assert (
        f"srun --kill-on-bad-exit=1 {sys.executable} -m lm.train"
        in Path("runs/launch/trial.sbatch").read_text()
    )
    assert "tail -F runs/launch/trial-4242.log" in capfd.readouterr().out


def test_a_dry_run_submits_or_writes(cloud, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["--on=slurm:2x8", "--name=trial", "--dry-run", "--", "python", "-m", "lm.train"]) == 0
    )
    assert cloud.calls() == [] and not Path("runs").exists()
    assert "sbatch --parsable runs/launch/trial.sbatch" in capfd.readouterr().out


@pytest.mark.parametrize(
    "out, job, cluster",
    [
        ("4242\n", "4242", ""),
        (
            "** Welcome to Big, 2026 **\n7 nodes are down\n\n4242;big\nsbatch: see "
            "https://x/2026\n",
            "4242",
            " --clusters=big",
        ),
        ("2025\n4242\r\n", "4242", ""),
        ("Submitted batch job 4242\n", "4242", ""),
    ],
)
def test_a_banner_hides_the_id_of_a_job(cloud, tmp_path, monkeypatch, capfd, out, job, cluster):
    monkeypatch.chdir(tmp_path)
    cloud.plan(sbatch={"out": out, "err": "sbatch: 31 jobs are before yours\n99\n"})
    assert main(["--on=slurm:2x8", "--name=trial", "--", "true"]) == 0
    said = capfd.readouterr().out
    assert (
        f"trial-{job}.log\n" in said
        and f"squeue --job={job}{cluster}\n" in said
        and f"scancel {job}{cluster}\n" in said
    )


@pytest.mark.parametrize("out", ["what?\n", "", "job 12 of 99\n"])
def test_an_unreadable_answer_is_taken_for_a_refusal(cloud, tmp_path, monkeypatch, capfd, out):
    """The job may be queued: the error says how to find it."""
    monkeypatch.chdir(tmp_path)
    cloud.plan(sbatch={"out": out})
    assert main(["--on=slurm:2x8", "--name=trial", "--", "true"]) == 2
    err = capfd.readouterr().err
    assert (
        "whether it queued trial is not known" in err
        and "squeue --me --name=trial" in err
        and "scancel --name=trial" in err
    )


@pytest.mark.parametrize(
    "answer",
    [{"rc": 1, "err": "sbatch: error: invalid partition\n"}, {"out": "what?\n"}, {"out": ""}],
)
def test_a_refusal_is_taken_for_a_job(cloud, tmp_path, monkeypatch, capfd, answer):
    monkeypatch.chdir(tmp_path)
    cloud.plan(sbatch=answer)
    assert main(["--on=slurm:2x8", "--", "true"]) == 2
    said = capfd.readouterr()
    assert "error: sbatch ended with" in said.err and "job" not in said.out


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--on=slurm:2", "--", "true"], "slurm:NODESxGPUS"),
        (["--on=slurm:0x8", "--", "true"], "slurm:NODESxGPUS"),
        (["--on=slurm:2x8", "--retries=2", "--", "true"], "--retries has no meaning"),
        (["--on=slurm:2x8", "--max-hours=-1", "--", "true"], "--max-hours=-1"),
        (["--on=slurm:2x8"], "no command"),
    ],
)
def test_a_wrong_request_reaches_slurm(cloud, tmp_path, monkeypatch, capfd, argv, said):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert said in capfd.readouterr().err and cloud.calls() == []
