"""Freed memory is used again on a CPU, and nothing is changed where a user or a device says so."""

import os
import subprocess
import sys

import pytest

# Prints whether malloc was set, and pages that were cleared for the second of two equal blocks.
PROGRAM = """
import ctypes, resource, sys
from lm.host_memory import keep_freed
print(keep_freed())
size, apart = map(int, sys.argv[1:])
library = ctypes.CDLL(None)
library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    before = faults()
    block = library.malloc(size)
    for at in range(0, size, apart):
        ctypes.memset(block + at, 1, 1)
    library.free(block)
    last = faults() - before
print(last)
"""
TOUCHED = 4096  # pages of a block


def run(size: int, **changes) -> tuple[bool, int]:
    drop = ("MALLOC_", "GLIBC_TUNABLES", "JAX_PLATFORM")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(drop)} | changes
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(size), str(size // TOUCHED)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    was_set, pages = found.stdout.split()
    return was_set == "True", int(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize("size", [2**27, 3 * 2**30])
def test_a_freed_block_is_not_used_again(size):
    was_set, pages = run(size, JAX_PLATFORMS="cpu")
    assert was_set and pages < TOUCHED / 100


@pytest.mark.parametrize(
    "changes",
    [
        {"JAX_PLATFORMS": "tpu"},
        {"JAX_PLATFORMS": "cuda,cpu"},
        {"JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "2"},
        {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
    ],
)
def test_malloc_is_set_though_a_device_or_a_variable_says_otherwise(changes):
    assert not run(2**27, **changes)[0]
