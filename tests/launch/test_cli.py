"""The openbook command."""

import subprocess
import sys

import pytest

import retrieval.edit
from launch import cli


def test_help_leaves_a_command_out(capfd):
    assert cli.main(["--help"]) == 0
    out = capfd.readouterr().out
    for command in [
        "train",
        "train-tokenizer",
        "generate",
        "evaluate",
        "export",
        "build",
        "ask",
        "edit",
        "search",
        "run",
        "study",
    ]:
        assert f"\n  {command} " in out


def test_a_misspelled_command_is_not_explained(capfd):
    assert cli.main(["trian"]) == 2
    assert "no command 'trian' (did you mean 'train'?)" in capfd.readouterr().err


def test_the_version_is_not_told(capfd, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2.3")
    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out == "openbook 1.2.3\n"


def test_a_command_is_not_its_module():
    argv = [
        sys.executable,
        "-m",
        "launch.cli",
        "run",
        "--on=local",
        "--dry-run",
        "--",
        "echo",
        "two words",
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "echo 'two words'\n", "")
    done = subprocess.run([*argv[:4], "--on=nowhere", "--", "echo"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --on=nowhere")


def test_the_command_line_waits_for_jax():
    code = (
        "import sys, launch.cli, launch.run, launch.study; print('jax' in sys.modules, 'flax' in "
        "sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False False\n"
    )


def test_help_cut_short_by_a_pipe_ends_in_a_stack_trace():
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # before anything is written
    assert (process.wait(timeout=60), process.stderr.read()) == (0, "")


def test_usage_names_the_command_as_it_was_typed(capsys, monkeypatch):
    monkeypatch.setattr(cli.interrupts, "starting", lambda: None)
    for typed, said in (
        (["edit", "--help"], "usage: openbook edit"),
        (["generate", "--help"], "usage: openbook generate"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(typed)
        assert ended.value.code == 0 and said in capsys.readouterr().out
    with pytest.raises(SystemExit):
        retrieval.edit.main(["--help"])
    assert "usage: python -m retrieval.edit" in capsys.readouterr().out
