"""Run tests on the CPU with eight virtual devices, so that every mesh works on any machine."""

import atexit
import gc
import importlib.metadata
import itertools
import os
import pathlib
import shutil
import tempfile

import pytest

from lm import phases, xla_flags
from tests import processes
from tests.times import SLOWEST

# The second flag makes LLVM compile small programs two to three times faster. All XLA passes run.
FLAGS = {"xla_force_host_platform_device_count": "8", "xla_backend_optimization_level": "0"}
# Compilation is most of the tests' time; these make it another three to five times faster. They are
# set only for the jaxlib releases known to have them: an unknown flag ends the process.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS |= {
        "xla_cpu_use_fusion_emitters": "false",
        "xla_llvm_disable_expensive_passes": "true",
        "xla_cpu_parallel_codegen_split_count": "1",
    }

os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Programs that took long to compile are kept until the tests end: many tests, and the processes
    # they start, compile the same. xdist's workers inherit the folder.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="openbook-programs-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
for name, value in FLAGS.items():
    if name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{name}={value}".strip()
# Every operation of a lowered program has its name, but not the Python lines that made it. Writing
# those down took a third of the time of lowering.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# For the processes started from here, which under xdist run the tests. XLA compiles with many small
# allocations: with larger lists of free blocks it takes a tenth less time.
os.environ.setdefault(
    "GLIBC_TUNABLES",
    "glibc.malloc.tcache_count=5000:glibc.malloc.trim_threshold=268435456"
    ":glibc.malloc.top_pad=16777216:glibc.malloc.mmap_threshold=33554432",
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

MAPS = "/proc/self/maps"
CHECKED = itertools.cycle((True, *[False] * 7))  # counting the mappings takes up to 50 ms
ROOT = pathlib.Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    """Run the slowest files first, so that no worker begins one when the others have ended."""
    order = {ROOT / file: place for place, file in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(autouse=True, scope="session")
def default_signals():
    """Restore default signals for child processes, in the process that runs the tests.

    Under xdist that is the worker, not the process that started it.
    """
    processes.default_signals()


@pytest.fixture(autouse=True, scope="session")
def seldom_collected():
    """Collect garbage seldom, and never search what the test modules imported.

    JAX and transformers hold millions of objects; searching them took a twentieth of the time.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def quiet_phases():
    """Suppress messages about slow phases, so that output does not depend on speed."""
    phases.AFTER = phases.EVERY = 1e6


@pytest.fixture(autouse=True, scope="session")
def known_fusion():
    """Tests start JAX as they like: only those of lm/xla_flags.py are warned."""
    xla_flags._warned = True


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """Folder of compiled programs, for `compiled_once`, shared by the workers of xdist."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "programs"


@pytest.fixture(scope="module")
def compiled_once(programs):
    """Keep compiled programs on disk for the tests of a module, many of which compile the same.

    Not for tests of compilation: a program that is found is not compiled.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(programs),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_max_size": 8 * 1024**3,  # a limit makes JAX lock the folder
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def end_processes(default_signals):
    """End the processes that a test started, also when it fails."""
    with processes.ended_after():
        yield


@pytest.fixture(autouse=True)
def release_programs():
    """Drop the compiled programs of earlier tests.

    Each program maps memory of its own, and Linux ends a process with more than 65,530 mappings.
    """
    yield
    if next(CHECKED) and os.path.exists(MAPS):
        with open(MAPS, "rb") as regions:
            many = sum(1 for _ in regions) > 20_000
        if many:
            import jax

            jax.clear_caches()
