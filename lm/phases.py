"""Phases of work, reported on standard error after a silence, and when the user interrupts."""

import contextlib
import sys
import threading
import time
from collections.abc import Generator, Sequence

AFTER, EVERY = 2.0, 30.0  # seconds of silence before the first line, and between later lines

_running: list[str] = []
_speaks = False
_heard = 0.0


def current() -> str:
    """Innermost running phase."""
    return _running[-1] if _running else "working"


def heard() -> None:
    """Note that something was printed, which restarts the silence."""
    global _heard
    _heard = time.monotonic()


@contextlib.contextmanager
def spoken(argv: Sequence[str] | None = None) -> Generator[None]:
    """Enable reports of phases within an entry point, unless argv has --json or --quiet."""
    global _speaks
    before, _speaks = (
        _speaks,
        not {"--json", "--quiet"} & set(sys.argv[1:] if argv is None else argv),
    )
    try:
        yield
    finally:
        _speaks = before


def silence() -> None:
    """Disable reports of phases, as on every process of a run but the first."""
    global _speaks
    _speaks = False


@contextlib.contextmanager
def named(what: str) -> Generator[None]:
    """Name the work of a block ("loading the weights of X"), for a report on interruption."""
    _running.append(what)
    try:
        yield
    finally:
        _running.remove(what)


@contextlib.contextmanager
def phase(what: str, after: float | None = None) -> Generator[None]:
    """Name the work of a block, as `named`, and report it on standard error after a silence.

    after: seconds before the first line, default AFTER; later lines follow every EVERY seconds. Of
    nested phases only the innermost is reported. Also a decorator.
    """
    began, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        last, wait, first = began, AFTER if after is None else after, True
        while not ended.wait(max(0.0, max(last, _heard) + wait - time.monotonic())):
            now = time.monotonic()
            if now < max(last, _heard) + wait:
                continue
            if _speaks and current() == what:
                print(
                    f"{what} ..." if first else f"{what}: {now - began:.0f} s so far",
                    file=sys.stderr,
                    flush=True,
                )
            last, wait, first = now, EVERY, False

    watcher = threading.Thread(target=watch, daemon=True)
    with named(what):
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
