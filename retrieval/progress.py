"""How far a long job is and the time left: a bar on a terminal, elsewhere a line now and then for the log."""

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
    """Yields `items` in chunks; from `show_from` items on shows how far it is when stderr is a terminal, and logs it every 30 s when not.

    rich honours NO_COLOR.
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
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=len(items))
        for start in starts:
            yield items[start : start + chunk]
            bar.update(task, completed=min(start + chunk, len(items)))
