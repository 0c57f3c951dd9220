"""Child processes of tests: default signals, and an end with the test, also when it fails."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path

# Set in the environment of every child process and its descendants.
MARK = "OPENBOOK_TEST_PROCESS"
SHARED = (b"resource_tracker", b"forkserver")  # processes of multiprocessing that all tests share

STARTS = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.forkpty")

_before: dict[int, int] | None = {}  # processes before a block's first start; None: none started


def _notice(event: str, args) -> None:
    global _before
    if event in STARTS and _before is None:
        _before = _processes()


sys.addaudithook(_notice)


def default_signals() -> None:
    """Handle signals that this process ignores, so that child processes get the default.

    Under nohup or in the background signals are ignored. A child inherits an ignored signal, but
    not a handler that does nothing.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, lambda *_: None)


@contextlib.contextmanager
def ended_after() -> Generator[None]:
    """Kill every process that the block started, also indirectly. Needs /proc."""
    global _before
    outer, _before, mark = _before, None, f"{os.getpid()}-{os.urandom(8).hex()}"
    os.environ[MARK] = mark
    try:
        yield
    finally:
        os.environ.pop(MARK, None)
        if _before:
            for pid in _left(mark, _before):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        _before = _before if outer is None else outer


def _left(mark: str, before: dict[int, int]) -> set[int]:
    """Marked processes, new children of this process, and all their descendants."""
    now = _processes()
    found = {
        pid
        for pid, parent in now.items()
        if pid not in before and (parent == os.getpid() or _has(pid, "environ", mark.encode()))
    }
    while more := {pid for pid, parent in now.items() if parent in found and pid not in found}:
        found |= more
    return {pid for pid in found if not any(_has(pid, "cmdline", word) for word in SHARED)}


def _processes() -> dict[int, int]:
    """pid -> parent pid of every running process; empty where there is no /proc."""
    found = {}
    for entry in os.listdir("/proc") if os.path.exists("/proc/self/stat") else ():
        if entry.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (
                    Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:2]
                )
                if state != "Z":
                    found[int(entry)] = int(parent)
    return found


def _has(pid: int, file: str, word: bytes) -> bool:
    with contextlib.suppress(OSError):
        return word in Path("/proc", str(pid), file).read_bytes()
    return False
