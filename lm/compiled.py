"""JAX's compilation cache on disk, shared by processes."""

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
MAX_BYTES = 2 * 1024**3  # of the default folder; JAX evicts the least recently used entries
OFF = ("0", "f", "false", "n", "no", "off")  # values that JAX reads as false
ABANDONED = 60.0  # seconds; an older entry without a time of use was only partly written


def keep_compiled() -> None:
    """Enable JAX's compilation cache in `$XDG_CACHE_HOME/openbook/compiled` (default ~/.cache).

    The environment takes precedence: `JAX_COMPILATION_CACHE_DIR` names another folder, or disables
    the cache if it is empty, and `JAX_ENABLE_COMPILATION_CACHE=0` disables it. Settings are passed
    through the environment, so JAX is not imported, and child processes inherit them. The cache is
    disabled if the folder is not writable.
    """
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in OFF:
        return
    folder = os.environ.get(DIR)
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        try:
            folder = str(cache.expanduser() / "openbook" / "compiled")
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except (OSError, RuntimeError):  # a read-only disk, or no home directory
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
    """Remove entries that were only partly written; JAX would neither use nor replace them."""
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(OSError):
            whole = entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists()
            if not whole and time.time() - entry.stat().st_mtime > ABANDONED:
                entry.unlink()
