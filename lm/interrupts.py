"""Ctrl-C: the first says what it waits for, the second ends the process at once with exit code 130.

Python runs a signal handler between two instructions of the main thread, which may be minutes away while that is in a tokenizer or in
XLA. A thread that the operating system wakes (signal.set_wakeup_fd) answers instead. Nothing heavy is imported here.
"""

import contextlib
import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

from lm import phases

GRACE = (
    0.5  # seconds in which a first Ctrl-C may end the process before it is said what it waits for
)
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
INTERRUPTED = 128 + signal.SIGINT


class Stopped(KeyboardInterrupt):
    """This process was sent a signal and has nothing to save; number is which."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class Interrupts:
    """Within the block the first signal raises Stopped, or only sets `received` where `waits` is set; a second SIGINT ends
    the process at once.

    received: the first signal that came, 0 for none.   kept: what a second SIGINT leaves, in words.   In another thread than the main
    one the block does nothing: signals are the main thread's.
    """

    def __init__(self, numbers: tuple[int, ...] = (signal.SIGINT,), kept: str = ""):
        self.received, self.waits, self.kept = 0, False, kept
        self._numbers = numbers

    def __enter__(self):
        self._before: dict = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in self._numbers:
            before = signal.signal(number, self._handle)
            self._before[number] = signal.default_int_handler if before is _leave else before
        self._outer = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._outer)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, frame) -> None:
        first, self.received = not self.received, self.received or number
        if first and not self.waits:
            name = signal.Signals(number).name
            raise Stopped(
                number,
                f"stopped by {name} while {phases.current()}{self.kept and f': {self.kept}'}",
            )

    def _answer(self) -> None:
        """Runs in a thread: answers each signal as it comes, until the block ends."""
        said, interrupts = time.monotonic(), 0
        waiting = b""
        while True:
            timeout = None if not waiting else max(0.0, said - time.monotonic())
            if not select.select([self._read], [], [], timeout)[0]:
                _say(waiting)
                waiting = b""
                continue
            number = os.read(self._read, 1)[0]
            if number == 0:
                return
            if number not in self._numbers:
                continue
            interrupts += number == signal.SIGINT
            if interrupts > 1:
                leave(f"ended by a second Ctrl-C{self.kept and f': {self.kept}'}")
            name, once_more = (
                ("Ctrl-C", " once more")
                if number == signal.SIGINT
                else (signal.Signals(number).name, "")
            )
            then = ", then the run is saved" if self.waits else ""
            waiting = (
                f"{name}: still {phases.current()}, which has to end first{then}. "
                f"Ctrl-C{once_more} ends at once{self.kept and f': {self.kept}'}"
            ).encode()
            said = time.monotonic() + (0.0 if self.waits else GRACE)


def starting() -> None:
    """What comes before an entry point imports its modules: wrong JAX_* variables end this process with a line and exit code 2, and from
    here on, until the entry point takes over, Ctrl-C with a line and 130."""
    from lm import jax_settings

    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _leave)
    if not {"--help", "-h", "--helpfull", "--helpshort"} & set(sys.argv):
        try:
            jax_settings.check()
        except jax_settings.SettingsError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def leave(message: str) -> None:
    """Ends the process now, whatever its threads do, with exit code 130."""
    with contextlib.suppress(OSError):
        os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + f"{message}\n".encode())
    os._exit(INTERRUPTED)


def _leave(number: int, frame) -> None:
    leave("interrupted while starting: nothing was begun")


def _say(message: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"\n" * os.isatty(2) + message + b"\n")


def entry_point(main: Callable[..., int]) -> Callable[..., int]:
    """Wraps `main(argv)`: a signal ends it with a line and exit code 128 + its number, devices that cannot be had with a line and 2.

    Where nobody reads the output to its end, it ends quietly, with 141.
    """

    @functools.wraps(main)
    def wrapped(argv=None) -> int:
        from lm import jax_settings

        with Interrupts(), phases.spoken(argv):
            try:
                code = _with_devices(main, argv)
                sys.stdout.flush()
                return code
            except (
                BrokenPipeError
            ):  # who reads has seen enough, as `head` has; Python flushes once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + signal.SIGPIPE
            except jax_settings.SettingsError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as stopped:
                print(stopped if str(stopped) else "interrupted", file=sys.stderr)
                return 128 + getattr(stopped, "number", signal.SIGINT)

    return wrapped


def _with_devices(main: Callable[..., int], argv) -> int:
    """Raises SettingsError where main failed because the devices that the environment asks for cannot be had."""
    from lm import jax_settings

    try:
        return main(argv)
    except (RuntimeError, AssertionError):
        if "jax" in sys.modules:
            jax_settings.devices()
        raise
