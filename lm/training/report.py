"""Terminal output of a run: a progress bar on a terminal, else plain lines. Honours NO_COLOR."""

import time

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lm import phases


class Report:
    """Printer to standard output, silent on every process but the first."""

    def __init__(self):
        self._console = Console(highlight=False, quiet=jax.process_index() != 0, soft_wrap=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        """Print one line without markup, above the bar if there is one."""
        phases.heard()
        self._console.print(text, markup=False)

    def start(self, step: int, steps: int) -> None:
        """Show the bar from `step` on."""
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task(
                "training", completed=step, total=steps, loss="-", speed=""
            )
            self._progress.start()

    def update(self, step: int, steps: int, row: dict, eta_s: float | None) -> None:
        """Report a completed step. row: as in metrics.jsonl."""
        phases.heard()
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        used = "" if row.get("mfu") is None else f", MFU {row['mfu']:.1%}"
        speed = (
            f"{row['tokens_per_second']:,.0f} tokens/s{used}"
            if row.get("tokens_per_second")
            else ""
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, loss=loss, speed=speed)
        else:
            left = "" if eta_s is None else f", {clock(eta_s)} left"
            self.say(f"step {step}/{steps}: loss {loss}{', ' + speed if speed else ''}{left}")

    def stop(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Stopwatch:
    """Seconds since creation, without pauses; used to compute speed."""

    def __init__(self):
        self._start, self._away = time.monotonic(), 0.0

    def __call__(self) -> float:
        return time.monotonic() - self._start - self._away

    def paused(self, seconds: float) -> None:
        """Exclude seconds that were spent on something else."""
        self._away += seconds


def clock(seconds: float) -> str:
    """Duration such as 1:02:03 or 2:03."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def amount(bytes_: float) -> str:
    """Bytes such as 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes_ < 1000:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000
    return f"{bytes_:.3g} TB"
