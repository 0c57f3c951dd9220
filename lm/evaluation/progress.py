"""Progress bar with the time left, on standard error; hidden if that is no terminal."""

import contextlib
from collections.abc import Callable, Generator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lm.phases import heard


@contextlib.contextmanager
def bar(total: int, what: str, quiet: bool = False) -> Generator[Callable[[int], None]]:
    """Yield a function to call with the number of items finished since the last call."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=quiet or not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=total)

        def advance(done: int) -> None:
            if not progress.disable:
                heard()
            progress.advance(task, done)

        yield advance
