"""XLA flags that avoid a bug of one release."""

import importlib.metadata
import logging
import os
import sys

# jax#39103: fused matmul, square and sum give a wrong last row; jax#40412: a crash.
WRONG_FUSION = "xla_cpu_experimental_ynn_fusion_type"
RIGHT = "individual_dot"  # the fusions that stay: products alone, without what follows them
AFFECTED = ("0.10.2",)  # releases of jaxlib; others may not know the flag, and would abort


log = logging.getLogger(__name__)
_warned = False


def avoid_wrong_fusion(dtype: str) -> None:
    """Disable in XLA_FLAGS the CPU fusions that the installed jaxlib gets wrong in float32.

    Products alone stay with the same library: XLA's own are up to 40 times slower for a few rows
    and a transposed matrix, such as a tied output table. In bfloat16 the flag is not needed, as no
    wrong result is known. JAX reads XLA_FLAGS when it starts its devices; if a CPU has been
    started, a warning is logged once instead. A value of the flag in XLA_FLAGS is kept. `lm.build`
    calls this, and so does everything that makes or loads a model.
    """
    global _warned
    flags = os.environ.get("XLA_FLAGS", "")
    if dtype != "float32" or WRONG_FUSION in flags:
        return
    version = importlib.metadata.version("jaxlib")
    if version not in AFFECTED:
        return
    if not _platform():
        os.environ["XLA_FLAGS"] = f"{flags} --{WRONG_FUSION}={RIGHT}".strip()
    elif _platform() == "cpu" and not _warned:
        _warned = True
        log.warning(
            "jaxlib %s computes some float32 sums of squares wrong on a CPU (jax#39103), and JAX "
            "has already started: make or load the first model before anything else uses JAX, or "
            "set XLA_FLAGS=--%s=%s before",
            version,
            WRONG_FUSION,
            RIGHT,
        )


def _platform() -> str:
    """What JAX computes on; "" before it has started its devices."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge.default_backend() if bridge and bridge.backends_are_initialized() else ""
