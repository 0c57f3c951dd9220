"""Flags of XLA that keep a known fault of one release away from results."""

import importlib.metadata
import os

WRONG_FUSION = "xla_cpu_experimental_ynn_fusion_type"  # jax#39103: matmul, square and sum fused, a wrong last row; jax#40412: a crash
AFFECTED = (
    "0.10.2",
)  # releases of jaxlib; another one may not know the flag, and would end the process


def avoid_wrong_fusion(dtype: str) -> None:
    """Switches off, in XLA_FLAGS, the CPU fusions that are wrong in the jaxlib installed, if there are such and `dtype` is float32.

    In bfloat16 the same fusions are what makes matmuls fast, and no wrong result is known. Of no effect once JAX has started its
    devices; a value that XLA_FLAGS gives the flag already is left alone.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if (
        dtype == "float32"
        and importlib.metadata.version("jaxlib") in AFFECTED
        and WRONG_FUSION not in flags
    ):
        os.environ["XLA_FLAGS"] = f"{flags} --{WRONG_FUSION}=".strip()
