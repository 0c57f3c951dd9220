"""Run a child process: show and log its output, and forward signals to its process group."""

import collections
import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from launch.errors import unread

ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[@-Z\\-_]")
ERROR = re.compile(r"\b(\w+(Error|Exception)|error|fatal)\b\s*:", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Ended:
    """Result of a child process.

    returncode: exit code, or minus the signal that killed it. seconds: wall time. stopped_by: first
    signal that was received and forwarded, 0 for none. error: last error line, '' without output.
    """

    returncode: int
    seconds: float
    stopped_by: int
    error: str


def run_child(
    argv: Sequence[str],
    log: Path,
    beat: Callable[[float], str],
    *,
    silence: float = 15.0,
    grace: float = 60.0,
    keep_open: Sequence[int] = (),
) -> Ended:
    """Run argv to its end; copy its output to stdout and to log.

    If stdout is a terminal, the child gets a pseudo-terminal, so progress bars work.
    beat: function of the seconds since the start; its text is printed after `silence` seconds
    without output. keep_open: file descriptors to inherit.
    SIGINT, SIGTERM and SIGHUP (as SIGTERM) are forwarded to the child's process group. It is killed
    at the second signal, or `grace` seconds after the first.
    If the reader of the output has gone (`| head`), the child gets SIGTERM, and stopped_by is
    SIGPIPE.
    """
    terminal = sys.stdout.isatty()
    started = time.monotonic()
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # Child processes do not inherit handlers, so the child has default signal handling, even for
    # signals that this process ignores.
    with (
        _output(terminal) as (ours, theirs),
        log.open("wb") as kept,
        _signals(grace) as (sent, children),
    ):
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=env,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
        os.close(theirs)
        children.append(child)
        if sent:
            _kill(child, _passed_on(sent[0][0]))
        tail = _copy(child, ours, kept, beat, silence, sent, grace)
        returncode = child.wait()
    return Ended(
        returncode, time.monotonic() - started, sent[0][0] if sent else 0, _error_line(tail)
    )


def _copy(
    child,
    ours: int,
    kept,
    beat: Callable[[float], str],
    silence: float,
    sent: list[tuple[int, float]],
    grace: float,
) -> bytes:
    """Copy the child's output until child and output have ended; return its last part."""
    tail: collections.deque[bytes] = collections.deque(maxlen=64)
    started = heard = time.monotonic()
    while True:
        ready, _, _ = select.select([ours], [], [], 0.1)
        now = time.monotonic()
        if sent and now - sent[0][1] > grace:
            _kill(child, signal.SIGKILL)
        if ready:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other side of the pseudo-terminal is closed
                chunk = b""
            if not chunk:
                return b"".join(tail)
            heard = now
            tail.append(chunk)
            kept.write(chunk)
            kept.flush()
            with _read_by_someone(child, sent):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
        elif (
            child.poll() is not None and now - heard > 0.5
        ):  # the child has ended, but one of its children keeps the output open
            return b"".join(tail)
        elif now - heard > silence:
            heard = now
            with _read_by_someone(child, sent):
                print(beat(now - started), flush=True)


@contextlib.contextmanager
def _read_by_someone(child, sent: list[tuple[int, float]]) -> Generator[None]:
    """Stop the child if the block prints to a pipe without a reader."""
    try:
        yield
    except BrokenPipeError:
        unread()
        if not sent:
            sent.append((signal.SIGPIPE, time.monotonic()))
            _kill(child, signal.SIGTERM)
    except OSError:  # the log has it
        pass


@contextlib.contextmanager
def _output(terminal: bool) -> Generator[tuple[int, int]]:
    """(our end, the child's end) of a pipe, or of a pseudo-terminal with our terminal's size."""
    if terminal:
        ours, theirs = pty.openpty()
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(
                sys.stdout.fileno(), termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0)
            )
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    else:
        ours, theirs = os.pipe()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


@contextlib.contextmanager
def _signals(grace: float) -> Generator[tuple[list[tuple[int, float]], list[subprocess.Popen]]]:
    """Forward signals; yield (list of received (signal, time), list of children to forward to).

    SIGHUP (closed terminal) is forwarded unless it is ignored, as under nohup.
    """
    sent: list[tuple[int, float]] = []
    children: list[subprocess.Popen] = []

    def forward(number, frame):
        sent.append((number, time.monotonic()))
        for child in children:
            _kill(child, _passed_on(number) if len(sent) == 1 else signal.SIGKILL)
        if len(sent) == 1:
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(
                    f"\nstopping the stage (up to {grace:.0f} s; once more to kill it)", flush=True
                )

    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    before = {
        number: signal.signal(number, forward)
        for number in (signal.SIGINT, signal.SIGTERM, *hangup)
    }
    try:
        yield sent, children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _passed_on(number: int) -> int:
    """Signal to forward: SIGHUP becomes SIGTERM, on which training saves a checkpoint."""
    return signal.SIGTERM if number == signal.SIGHUP else number


def _kill(child: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _error_line(output: bytes) -> str:
    """Last line that looks like an error, else the last line."""
    lines = [
        line.strip()
        for line in re.split(r"[\r\n]+", ANSI.sub(b"", output).decode(errors="replace"))
    ]
    lines = [line for line in lines if line]
    return next(
        (line for line in reversed(lines[-40:]) if ERROR.search(line)), lines[-1] if lines else ""
    )
