"""--on=local behaves like the command itself: arguments, signals and exit code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.run import main

ROOT = Path(__file__).parents[2]


def start(*command: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "launch.run", "--on=local", "--", *command]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def test_an_argument_or_the_exit_code_changes_on_the_way():
    nasty = ["two  words", "it's", "$HOME", "a\nb", "☃", "-x", "--", ""]
    process = start(
        "python",
        "-c",
        "import json, sys; print(json.dumps([sys.executable, *sys.argv[1:]])); sys.exit(7)",
        *nasty,
    )
    out, _ = process.communicate(timeout=30)
    assert json.loads(out) == [sys.executable, *nasty] and process.returncode == 7


def test_a_signal_does_not_reach_the_command():
    process = start(
        "python",
        "-c",
        "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(9)); print('on', "
        "flush=True); time.sleep(30)",
    )
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 9


def test_a_missing_program_ends_in_a_stack_trace():
    process = start("no-such-program-here")
    _, err = process.communicate(timeout=30)
    assert (
        process.returncode == 2
        and err.startswith("error: 'no-such-program-here' cannot be run")
        and err.count("\n") == 1
    )


def test_a_dry_run_runs(capfd):
    assert main(["--on=local", "--dry-run", "--", "echo", "two words"]) == 0
    assert capfd.readouterr().out == "echo 'two words'\n"


@pytest.mark.parametrize(
    "argv", [["--on=local", "--"], ["--on=local"], ["--on=locl", "--", "true"]]
)
def test_a_wrong_request_is_run(argv, capfd):
    assert main(argv) == 2
    assert capfd.readouterr().err.startswith("error: ")
