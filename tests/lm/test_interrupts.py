"""Ctrl-C ends at once with one line; wrong JAX_* variables give one line too."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from lm import interrupts, jax_settings, phases
from lm.interrupts import Interrupts, Stopped
from lm.jax_settings import SettingsError

ROOT = pathlib.Path(__file__).parents[2]


BUSY = """
import hashlib
from lm import phases
from lm.interrupts import Interrupts
with Interrupts(kept="all that was saved stays") as signals, phases.named("reading x.txt"):
    signals.waits = True
    print("on", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no instruction of Python for minutes
"""


def test_a_first_ctrl_c_is_not_answered_or_a_second_does_not_end_the_process():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (
        process.stdout is not None
        and process.stderr is not None
        and process.stdout.readline() == "on\n"
    )
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == (
        "Ctrl-C: still reading x.txt, which has to end first, then the run is saved. Ctrl-C once "
        "more ends at once: "
        "all that was saved stays\n"
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert process.stderr.read() == "ended by a second Ctrl-C: all that was saved stays\n"


def test_a_handler_or_a_descriptor_stays_behind():
    before, open_before = (
        signal.getsignal(signal.SIGINT),
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    )
    refused = pytest.raises(Stopped, match="stopped by SIGINT while counting: nothing is lost")
    with refused as raised, phases.named("counting"), Interrupts(kept="nothing is lost"):
        with Interrupts((signal.SIGTERM,)):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert raised.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == before and signal.set_wakeup_fd(-1) == -1
    assert not open_before or len(os.listdir("/proc/self/fd")) == open_before


def test_an_interrupt_in_another_thread_fails():
    found = []

    def work():
        with Interrupts() as signals:
            found.append(signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


@pytest.mark.parametrize("module", ["lm.train", "retrieval.build"])
def test_ctrl_c_during_imports_ends_in_a_stack_trace(tmp_path, module):
    """A module that is imported early sends the signal, as a terminal would."""
    (tmp_path / "absl.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    )
    (tmp_path / "numpy.py").write_text("import absl\n")
    (tmp_path / "jax.py").write_text("import absl\n")
    argv = {
        "lm.train": ["--config=configs/tiny.py", "--workdir=x"],
        "retrieval.build": ["--memory=x", "--input=y"],
    }[module]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    env = {name: value for name, value in env.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"JAX_PLATFORMS": "gpuu"},
            "JAX_PLATFORMS=gpuu: JAX has no platform 'gpuu' (did you mean 'gpu'?)",
        ),
        ({"JAX_PLATFORMS": "cpu,,"}, "JAX has no platform ''"),
        ({"JAX_NUM_CPU_DEVICES": "x"}, "JAX_NUM_CPU_DEVICES=x: expected a number of devices"),
        (
            {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES=two: expected a number of processes",
        ),
        (
            {"JAX_NUM_PROCESSES": "2"},
            "JAX_NUM_PROCESSES=2 without JAX_PROCESS_ID: give each process its own, from 0 to 1",
        ),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID=2: expected a number from 0 to 1",
        ),
        ({"JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID=1 without JAX_NUM_PROCESSES"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS=host: expected HOST:PORT"),
        ({"JAX_LOCAL_DEVICE_IDS": "a"}, "JAX_LOCAL_DEVICE_IDS=a: expected numbers of devices"),
    ],
)
def test_a_wrong_variable_reaches_jax(monkeypatch, variables, said):
    for name in [name for name in os.environ if name.startswith("JAX_")]:
        monkeypatch.delenv(name)
    jax_settings.check()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        jax_settings.check()
    assert said in str(refused.value)


def test_what_jax_refuses_ends_in_a_stack_trace():
    env = os.environ | {"JAX_ENABLE_X64": "maybe"}
    done = subprocess.run(
        [sys.executable, "-m", "retrieval.log", "--memory=x"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("error: JAX_ENABLE_X64=maybe: JAX refuses it (")
        and done.stderr.count("\n") == 1
    )


def test_devices_that_cannot_be_had_end_in_a_stack_trace(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr(
        "jax.devices",
        lambda: (_ for _ in ()).throw(RuntimeError("Unable to initialize backend 'tpu'\nmore")),
    )

    @interrupts.entry_point
    def main(argv=None) -> int:
        raise RuntimeError("Unable to initialize backend 'tpu'")

    assert main([]) == 2
    assert (
        capsys.readouterr().err
        == "error: JAX_PLATFORMS=tpu: its devices cannot be used: Unable to initialize backend "
        "'tpu'\n"
    )


def lines_of_phases(capsys, argv=()):
    with phases.spoken(argv), phases.phase("loading", after=0.05):
        with phases.phase("compiling", after=0.05):
            assert phases.current() == "compiling"
            time.sleep(0.3)
        with phases.phase("saving", after=1.0):
            for _ in range(120):
                phases.heard()
                time.sleep(0.01)
    return capsys.readouterr().err.splitlines()


def test_a_long_phase_is_silent_or_a_short_one_is_said(capsys, monkeypatch):
    """Of nested phases the innermost is reported.

    Nothing is reported while there is other output, with --json, or outside an entry point.
    """
    monkeypatch.setattr(phases, "EVERY", 0.1)
    first, *later = lines_of_phases(capsys)
    assert first == "compiling ..." and later and set(later) == {"compiling: 0 s so far"}
    assert lines_of_phases(capsys, ["--json"]) == []
    with phases.phase("loading", after=0.0):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
