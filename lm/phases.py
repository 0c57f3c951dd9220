"""What the process is doing: said on standard error when it takes long, and to someone who interrupts it."""

import contextlib
import sys
import threading
import time
from collections.abc import Generator

AFTER, EVERY = 2.0, 30.0  # seconds until a phase is said, and between later lines

_running: list[str] = []
_silent = False


def current() -> str:
    """The innermost phase that is running."""
    return _running[-1] if _running else "working"


def silence() -> None:
    """No phase is said any more, as on every process of a run but the first."""
    global _silent
    _silent = True


@contextlib.contextmanager
def named(what: str) -> Generator[None]:
    """A block that does `what` ("loading the weights of X"), which is said to someone who interrupts it."""
    _running.append(what)
    try:
        yield
    finally:
        _running.remove(what)


@contextlib.contextmanager
def phase(what: str, after: float | None = None) -> Generator[None]:
    """As `named`; a line on standard error also says what is done, when it takes longer than `after` seconds (default AFTER)."""
    began, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        wait, line = AFTER if after is None else after, f"{what} ..."
        while not ended.wait(wait):
            if not _silent:
                print(line, file=sys.stderr, flush=True)
            wait, line = EVERY, f"{what}: {time.monotonic() - began + EVERY:.0f} s so far"

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with named(what):
            yield
    finally:
        ended.set()
        watcher.join()
