"""Freed memory that a training step on a CPU gets again, instead of new pages (glibc)."""

import ctypes
import importlib.metadata
import importlib.util
import os

MMAP_MAX, TRIM_THRESHOLD, ARENA_MAX = -4, -1, -8  # parameters of mallopt(3)
VARIABLES = "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"
NEVER = -1  # to trim: the largest int, 2 GiB, is less than a step of some models frees


def keep_freed() -> bool:
    """Let malloc keep what is freed, for the rest of the process; True if it does.

    XLA allocates the temporary memory of a step anew every time. By default glibc gives blocks
    above 32 MiB back to the system, which then clears as many new pages. Call this before threads
    start. Does nothing where JAX may use another device than the CPU, because the host's memory is
    then for other things, without glibc, and where a variable sets malloc's parameters.
    """
    set_by_user = any(map(os.environ.get, VARIABLES)) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if set_by_user or not _on_cpu():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wanted = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: NEVER}
    return all([library.mallopt(name, value) for name, value in wanted.items()])


def _on_cpu() -> bool:
    asked = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    if asked:
        return asked.lower() == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
