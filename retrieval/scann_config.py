"""ScaNN's configuration where its builder's usual values do not fit or its text can say more than the builder."""

import math
import re

PARALLEL = 4.1  # an error along a vector counts so many times one across it


def anisotropy(dim: int) -> float:
    """The threshold T of ScaNN's loss with which errors count as they do with its usual 0.2 at 100 dimensions; never more than that.

    (dim - 1) T^2 / (1 - T^2) = PARALLEL (Guo et al. 2020, section 3). 0.2 itself makes them count 16 times at 384 dimensions
    and 24 at 576, so that those across, of which other vectors see most, grow: at equal recall 15 to 20 % more is read.
    """
    return min(0.2, math.sqrt(PARALLEL / (dim - 1 + PARALLEL)))


def with_reach(config: str) -> str:
    """The partitions whose centres score at most 1 less than the best one's are searched, best first, up to the number a search gives.

    The 1 is fixed once trained, but products grow with the query: one divided by `reach` is one that reaches so far.
    """
    return config.replace(
        "spilling_type: FIXED_NUMBER_OF_CENTERS",
        "spilling_type: ADDITIVE\n          spilling_threshold: 1.0",
        1,
    )


def with_widths(config: str, widths: list[tuple[int, int]]) -> str:
    """ScaNN's configuration with codes of these widths instead of equal ones."""
    dim, codes = sum(count * width for count, width in widths), sum(count for count, _ in widths)
    blocks = " ".join(
        f"variable_blocks {{ num_blocks: {count} num_dims_per_block: {width} }}"
        for count, width in widths
    )
    chunks = r"projection \{\s*input_dim: \d+\s+projection_type: (VARIABLE_)?CHUNK.*?(?=\s*\}\s*fixed_point)"
    config = re.sub(
        chunks,
        f"projection {{ input_dim: {dim} projection_type: VARIABLE_CHUNK {blocks}",
        config,
        flags=re.DOTALL,
    )
    return (
        config
        if codes > 256
        else re.sub(
            r"(use_residual_quantization: True\s+use_global_topn: )False", r"\1True", config
        )
    )
