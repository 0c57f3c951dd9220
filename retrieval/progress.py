"""A progress bar with the time left, on a terminal only: a log file gets none."""

import sys
from collections.abc import Iterator, Sequence

CHUNK = 512
SHOW_FROM = 2 * CHUNK


def chunks_with_progress(items: Sequence, what: str, chunk: int = CHUNK, show_from: int = SHOW_FROM) -> Iterator[Sequence]:
    """Yields `items` in chunks; from `show_from` items on, and only when stderr is a terminal, shows how far it is.

    rich honours NO_COLOR.
    """
    starts = range(0, len(items), chunk)
    if len(items) < show_from or not sys.stderr.isatty():
        yield from (items[start : start + chunk] for start in starts)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=len(items))
        for start in starts:
            yield items[start : start + chunk]
            bar.update(task, completed=min(start + chunk, len(items)))
