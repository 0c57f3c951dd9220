"""Progress of commands that make data."""

import time

from lm.printing import program


class Progress:
    """Prints a step's progress with the time left. module: of the command."""

    def __init__(self, module: str):
        self._module, self._name, self._start, self._before = module, "", 0.0, 0

    def __call__(self, name: str, done: int, total: int, more: str) -> None:
        from lm.training.report import clock

        now = time.monotonic()
        if name != self._name:
            self._name, self._start, self._before = name, now, done
        new = done - self._before
        left = f", {clock((now - self._start) / new * (total - done))} left" if new else ""
        more = f", {more}" if more else ""
        print(f"{program(self._module)}: {name} {done}/{total}{more}{left}", flush=True)
