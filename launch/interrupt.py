"""Turn SIGINT, SIGTERM and SIGHUP into one exception, raised once and only where it is allowed."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Generator

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Signal to this process. number: of the signal."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclasses.dataclass
class Signals:
    """Received signals. came: the first one, 0 for none. doing: work that a signal waits for."""

    came: int = 0
    doing: str = "starting"
    allowed: bool = False

    @contextlib.contextmanager
    def may_interrupt(self) -> Generator[None]:
        """Raise Interrupted for a first signal within the block, or at once for an earlier one.

        A second signal never raises.
        """
        try:
            self.allowed = True
            if self.came:
                raise Interrupted(self.came)
            yield
        finally:
            self.allowed = False

    def handle(self, number: int, frame) -> None:
        """Handle a signal."""
        first, self.came = not self.came, self.came or number
        if first and self.allowed:
            raise Interrupted(number)
        with contextlib.suppress(
            OSError
        ):  # the terminal may be gone; print is not safe in a signal handler
            os.write(2, f"{self.doing}: wait for it to end\n".encode())


@contextlib.contextmanager
def catch_signals() -> Generator[Signals]:
    """Handle SIGINT, SIGTERM and SIGHUP in the block; ignored signals (nohup) stay ignored."""
    signals = Signals()
    heeded = [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signals.handle) for number in heeded}
    try:
        yield signals
    finally:
        for number, old in before.items():
            signal.signal(number, old)
