"""Ctrl-C, SIGTERM and a closed terminal as one exception, raised once and only where it is allowed: nothing else is ever cut short."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Generator

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """This process was sent SIGINT, SIGTERM or SIGHUP; number is which."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclasses.dataclass
class Signals:
    """came: the first signal that came, 0 for none. doing: what is told to someone who sends one where it has to wait."""

    came: int = 0
    doing: str = "starting"
    allowed: bool = False

    @contextlib.contextmanager
    def may_interrupt(self) -> Generator[None]:
        """Within the block a signal raises Interrupted; one that came before raises it at once. A second one never raises."""
        try:
            self.allowed = True
            if self.came:
                raise Interrupted(self.came)
            yield
        finally:
            self.allowed = False

    def handle(self, number: int, frame) -> None:
        """The signal handler."""
        first, self.came = not self.came, self.came or number
        if first and self.allowed:
            raise Interrupted(number)
        with contextlib.suppress(
            OSError
        ):  # the terminal may be gone; print could fail, or be the very thing that was interrupted
            os.write(2, f"{self.doing}: wait for it to end\n".encode())


@contextlib.contextmanager
def catch_signals() -> Generator[Signals]:
    """Within the block SIGINT, SIGTERM and SIGHUP go to the Signals it yields; one that is ignored (nohup) stays ignored."""
    signals = Signals()
    heeded = [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signals.handle) for number in heeded}
    try:
        yield signals
    finally:
        for number, old in before.items():
            signal.signal(number, old)
