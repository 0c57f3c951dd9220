"""Tests run on the CPU, forced to eight devices so that every mesh can be tried on any machine."""

import os

import pytest

from lm import phases
from tests import processes

# The second flag only makes LLVM compile our tiny programs two to three times faster; XLA's own passes all run.
FLAGS = {"xla_force_host_platform_device_count": "8", "xla_backend_optimization_level": "0"}

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # none: a test compiles what it tests
for name, value in FLAGS.items():
    if name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{name}={value}".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

MAPS = "/proc/self/maps"


@pytest.fixture(autouse=True, scope="session")
def default_signals():
    """Of all that tests start; here, in the process that runs them, and not in the one that xdist starts it from."""
    processes.default_signals()


@pytest.fixture(autouse=True, scope="session")
def quiet_phases():
    """A slow machine prints no line that a fast one does not, so that tests can compare all that a command says."""
    phases.AFTER = phases.EVERY = 1e6


@pytest.fixture(autouse=True)
def end_processes(default_signals):
    """What a test starts ends with it, also when it fails."""
    with processes.ended_after():
        yield


@pytest.fixture(autouse=True)
def release_programs():
    """Drops the compiled programs of earlier tests: each maps memory of its own, and Linux ends a process that maps 65,530 regions."""
    yield
    if os.path.exists(MAPS):
        with open(MAPS, "rb") as regions:
            many = sum(1 for _ in regions) > 20_000
        if many:
            import jax

            jax.clear_caches()
