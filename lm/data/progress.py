"""Progress of what takes long on the host: how much of the files was read, how fast, and what is left."""

import contextlib
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Generator

from lm.data import packing, sources
from lm.data.files import is_packed
from lm.data.sources import DataError, Tally

EVERY = 5.0  # seconds between lines
ABANDONED = 24 * 3600.0  # seconds after which a folder that was being written is nobody's any more


@contextlib.contextmanager
def shown(name: str, patterns: str, every: float = EVERY) -> Generator[Tally]:
    """A tally whose growth is printed to standard error while the block runs."""
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
    """What has been read after so many seconds; `total`: bytes of the files, 0 = unknown."""
    speed = f"{name}: {tally.records:,} documents, {tally.bytes / seconds / 1e6:.1f} MB/s"
    if not total or not tally.bytes:
        return speed
    share = min(1.0, tally.bytes / total)
    return f"{speed}, {share:.0%}, about {seconds * (1 - share) / share:.0f} s left"


def summary(name: str, stats: dict[str, float]) -> str:
    """One line about packed rows."""
    counts = [
        f"{stats[key]:,} {packing.named(key)}"
        for key in stats
        if key not in ("length", "bytes") and not key.endswith("filled")
    ]
    return f"{name}: {', '.join(counts)}, {stats['filled']:.1%} filled"


def remove_unfinished(cache: pathlib.Path, older: float = ABANDONED) -> None:
    """Removes what a killed process left behind in a cache; what may still be written is left alone."""
    for folder in cache.glob(f"{packing.UNFINISHED}*") if cache.is_dir() else ():
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > older:
                shutil.rmtree(folder, ignore_errors=True)


def _size(patterns: str) -> int:
    """Bytes that a tally of the sources will come to; 0 where that is unknown."""
    try:
        files = sources.find_files(patterns)
    except DataError:
        return 0  # folders and lists of tasks; or nothing, which is for the reader to say
    known = all(
        "://" not in f and not is_packed(f) and sources.kind(f) not in ("", ".parquet")
        for f in files
    )
    return sum(os.path.getsize(f) for f in files) if known else 0
