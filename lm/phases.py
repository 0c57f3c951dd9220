"""What the process is doing: said on standard error when nothing was heard for a while, and to someone who interrupts it."""

import contextlib
import sys
import threading
import time
from collections.abc import Generator, Sequence

AFTER, EVERY = 2.0, 30.0  # seconds of silence before a phase is said, and between later lines

_running: list[str] = []
_speaks = False
_heard = 0.0


def current() -> str:
    """The innermost phase that is running."""
    return _running[-1] if _running else "working"


def heard() -> None:
    """Something else was just said: phases wait."""
    global _heard
    _heard = time.monotonic()


@contextlib.contextmanager
def spoken(argv: Sequence[str] | None = None) -> Generator[None]:
    """Phases are said in the block, which is an entry point's: elsewhere, and with --json or --quiet in argv, they are silent."""
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
    """No phase is said any more, as on every process of a run but the first."""
    global _speaks
    _speaks = False


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
    """As `named`; a line on standard error also says so when nothing was heard for `after` seconds (default AFTER), then every EVERY.

    Of phases within each other only the innermost is said. Also a decorator.
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
