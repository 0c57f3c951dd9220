"""Progress of long work on the host: the share of the files read, the speed and the time left."""

import contextlib
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Generator

from lm.data import packed
from lm.data.packed import named
from lm.data.read import sources
from lm.data.read.files import is_packed
from lm.data.read.sources import DataError, Tally

EVERY = 5.0  # seconds between lines
ABANDONED = 24 * 3600.0  # age in seconds at which an unfinished folder counts as abandoned


@contextlib.contextmanager
def shown(name: str, patterns: str, every: float = EVERY) -> Generator[Tally]:
    """Yield a tally, and print its growth to standard error while the block runs."""
    tally, done, start = Tally(), threading.Event(), time.monotonic()
    total = _size(patterns)

    def watch() -> None:
        while not done.wait(every):
            print(line(name, tally, total, time.monotonic() - start), file=sys.stderr, flush=True)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield tally
    finally:
        done.set()
        watcher.join()


def line(name: str, tally: Tally, total: int, seconds: float) -> str:
    """Progress line after `seconds`. total: bytes of the files, 0 = unknown."""
    speed = f"{name}: {tally.records:,} documents, {tally.bytes / seconds / 1e6:.1f} MB/s"
    if not total or not tally.bytes:
        return speed
    share = min(1.0, tally.bytes / total)
    return f"{speed}, {share:.0%}, about {seconds * (1 - share) / share:.0f} s left"


def summary(name: str, stats: dict[str, float]) -> str:
    """One-line summary of packed rows."""
    counts = [
        f"{stats[key]:,} {named(key)}"
        for key in stats
        if key not in ("length", "bytes") and not key.endswith("filled")
    ]
    return f"{name}: {', '.join(counts)}, {stats['filled']:.1%} filled"


def remove_unfinished(cache: pathlib.Path, older: float = ABANDONED) -> None:
    """Remove unfinished folders of killed processes from a cache. Newer folders are kept."""
    for folder in cache.glob(f"{packed.UNFINISHED}*") if cache.is_dir() else ():
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > older:
                shutil.rmtree(folder, ignore_errors=True)


def _size(patterns: str) -> int:
    """Bytes that a tally of the sources will reach; 0 if unknown."""
    try:
        files = sources.find_files(patterns)
    except DataError:
        return 0  # folders, lists of tasks, or no file; the reader reports errors
    known = all(
        "://" not in f and not is_packed(f) and sources.kind(f) not in ("", ".parquet")
        for f in files
    )
    return sum(os.path.getsize(f) for f in files) if known else 0
