"""Progress of a long job: a bar on a terminal, else a log line now and then."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

CHUNK = 512
LOG_EVERY = 30.0  # seconds
SHOW_FROM = 2 * CHUNK


def chunks_with_progress(
    items: Sequence, what: str, chunk: int = CHUNK, show_from: int = SHOW_FROM
) -> Iterator[Sequence]:
    """Yield `items` in chunks and report progress labelled `what`.

    From `show_from` items on, a bar is shown if stderr is a terminal. Otherwise progress is logged
    every 30 s. rich honours NO_COLOR.
    """
    starts = range(0, len(items), chunk)
    if len(items) < show_from or not sys.stderr.isatty():
        began = said = time.monotonic()
        for start in starts:
            yield items[start : start + chunk]
            done, now = min(start + chunk, len(items)), time.monotonic()
            if now - said > LOG_EVERY and done < len(items):
                left = (now - began) / done * (len(items) - done)
                logger.info(
                    "%s: %s of %s, about %.0f s left", what, f"{done:,}", f"{len(items):,}", left
                )
                said = now
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=len(items))
        for start in starts:
            yield items[start : start + chunk]
            bar.update(task, completed=min(start + chunk, len(items)))
