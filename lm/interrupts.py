"""Handle Ctrl-C: the first one reports what it waits for, the second ends the process with 130.

Python runs signal handlers between two instructions of the main thread. That can take minutes while
it is in a tokenizer or in XLA. So a thread that the operating system wakes (signal.set_wakeup_fd)
prints the report. This module imports nothing slow.
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

GRACE = 0.5  # seconds for a first Ctrl-C to end the process before the report is printed
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides the cursor
INTERRUPTED = 128 + signal.SIGINT


class Stopped(KeyboardInterrupt):
    """Signal to a process that has nothing to save. number: of the signal."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class Interrupts:
    """Signal handling within a block; a second SIGINT ends the process at once.

    The first signal raises Stopped, or only sets `received` if `waits` is set.
    received: first signal, 0 for none. kept: for the message, what a second SIGINT leaves.
    The block does nothing in another thread than the main one, which handles all signals.
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
        """Report each signal, in a thread, until the block ends."""
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
    """Check JAX_* variables and set a handler, before an entry point imports its modules.

    Wrong JAX_* variables end the process with a message and exit code 2. Until the entry point sets
    its own handler, Ctrl-C ends the process with a message and 130.
    """
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
    """Exit with code 130 at once, whatever other threads do."""
    with contextlib.suppress(OSError):
        os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + f"{message}\n".encode())
    os._exit(INTERRUPTED)


def _leave(number: int, frame) -> None:
    leave("interrupted while starting: nothing was begun")


def _say(message: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"\n" * os.isatty(2) + message + b"\n")


def entry_point(main: Callable[..., int]) -> Callable[..., int]:
    """Decorate `main(argv)` to turn signals and errors of devices into messages and exit codes.

    128 + number for a signal, 2 when the devices are not available, and 141 without a message when
    the output is closed early.
    """

    @functools.wraps(main)
    def wrapped(argv=None) -> int:
        from lm import jax_settings

        with Interrupts(), phases.spoken(argv):
            try:
                try:
                    return _with_devices(main, argv)
                finally:
                    sys.stdout.flush()
            except (
                BrokenPipeError
            ):  # the reader has closed the pipe, as `head` does; Python flushes again at exit
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
    """Call main. Raises SettingsError if it failed because the requested devices are missing."""
    from lm import jax_settings

    try:
        return main(argv)
    except (RuntimeError, AssertionError):
        if "jax" in sys.modules:
            jax_settings.devices()
        raise
