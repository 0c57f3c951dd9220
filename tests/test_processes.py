"""`make test` under nohup or in the background behaves as in a terminal and leaves no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.child import run_child
from tests import processes

SHOW = (
    "import signal; print(signal.getsignal(signal.SIGINT) != signal.SIG_IGN, "
    "signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)"
)


@pytest.fixture
def ignored():
    """Ignore signals as under nohup and in a background job of a script."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_a_test_starts_ignores_signals(ignored):
    show = lambda: (
        subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True).stdout
    )
    assert show() == "False False\n"
    processes.default_signals()
    assert show() == "True True\n"
    os.kill(os.getpid(), signal.SIGINT)  # this process still ignores it
    os.kill(os.getpid(), signal.SIGHUP)


def test_a_stage_ignores_ctrl_c_where_its_study_is_in_the_background(ignored, tmp_path, capfd):
    done = run_child([sys.executable, "-c", SHOW], tmp_path / "log", lambda seconds: "")
    # The stages ignore SIGHUP too.
    assert done.returncode == 0 and capfd.readouterr().out == "True False\n"


def test_what_a_test_starts_outlives_it(tmp_path):
    """Covers an orphaned grandchild and a process with a cleared environment."""
    script = (
        "sleep 60 & echo $! > orphan; env -i PATH=$PATH sh -c 'echo $$ > other; exec sleep 60' & "
        "sleep 0.1; wait"
    )
    with pytest.raises(ZeroDivisionError), processes.ended_after():
        shell = subprocess.Popen(["sh", "-c", script], cwd=tmp_path)
        while not all(
            (tmp_path / name).exists() and (tmp_path / name).read_text().endswith("\n")
            for name in ("orphan", "other")
        ):
            time.sleep(0.01)
        _ = 1 / 0
    assert shell.wait(timeout=10) == -signal.SIGKILL
    for name in ("orphan", "other"):
        stat = Path("/proc", (tmp_path / name).read_text().strip(), "stat")
        deadline = time.monotonic() + 10
        while stat.exists() and " Z " not in stat.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not stat.exists() or " Z " in stat.read_text(), name
