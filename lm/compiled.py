"""A cache of compiled programs on disk, so that a second process does not compile what a first one did."""

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

DIR = "JAX_COMPILATION_CACHE_DIR"
SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}
MAX_BYTES = 2 * 1024**3  # of our own folder; JAX removes what was used longest ago, under a lock
OFF = ("0", "f", "false", "n", "no", "off")  # as JAX reads them
ABANDONED = 60.0  # seconds; an entry whose time of use is missing for longer was being written when its process ended


def keep_compiled() -> None:
    """Turns JAX's compilation cache on, in `$XDG_CACHE_HOME/openbook/compiled` (default ~/.cache).

    What the environment says of the cache is respected: `JAX_COMPILATION_CACHE_DIR` names another folder, and none where it is empty;
    `JAX_ENABLE_COMPILATION_CACHE=0` turns it off. Settings reach JAX through the environment, so that this imports nothing,
    and child processes have them too. Where the folder cannot be written, nothing is kept.
    """
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in OFF:
        return
    folder = os.environ.get(DIR)
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        try:
            folder = str(cache.expanduser() / "openbook" / "compiled")
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except (OSError, RuntimeError):  # a read-only disk; no home
            return
        if not os.access(folder, os.W_OK):
            return
        _tidy(Path(folder))
    if not folder:
        return
    if DIR not in os.environ:
        _set({DIR: folder, "JAX_COMPILATION_CACHE_MAX_SIZE": MAX_BYTES})
    _set(SETTINGS)


def _set(settings: Mapping[str, str | float]) -> None:
    for name, value in settings.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            if jax := sys.modules.get("jax"):
                jax.config.update(name.lower(), value)


def _tidy(folder: Path) -> None:
    """Removes entries that were cut off while they were written: JAX would meet them, and not replace them, for ever."""
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(OSError):
            whole = entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists()
            if not whole and time.time() - entry.stat().st_mtime > ABANDONED:
                entry.unlink()
