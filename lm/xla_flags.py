"""XLA flags that avoid a bug of one release."""

import importlib.metadata
import os

# jax#39103: fused matmul, square and sum give a wrong last row; jax#40412: a crash.
WRONG_FUSION = "xla_cpu_experimental_ynn_fusion_type"
AFFECTED = ("0.10.2",)  # releases of jaxlib; others may not know the flag, and would abort


def avoid_wrong_fusion(dtype: str) -> None:
    """Disable the wrong CPU fusions in XLA_FLAGS, for an affected jaxlib and dtype float32.

    In bfloat16 the same fusions make matmuls fast, and no wrong result is known. It has no effect
    after JAX has started its devices. A value of the flag in XLA_FLAGS is not changed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if (
        dtype == "float32"
        and importlib.metadata.version("jaxlib") in AFFECTED
        and WRONG_FUSION not in flags
    ):
        os.environ["XLA_FLAGS"] = f"{flags} --{WRONG_FUSION}=".strip()
