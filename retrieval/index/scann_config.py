"""Edits to ScaNN's text configuration that its builder cannot express."""

import math
import re

PARALLEL = 4.1  # weight of an error parallel to a vector, relative to an orthogonal one


def anisotropy(dim: int) -> float:
    """Return the threshold T of ScaNN's anisotropic loss for vectors of `dim` dimensions.

    It solves (dim - 1) T^2 / (1 - T^2) = PARALLEL (Guo et al. 2020, section 3) and is at most
    ScaNN's default, 0.2. That default corresponds to PARALLEL at about 100 dimensions; at 384 it
    weights parallel errors 16 times, at 576 24 times. Orthogonal errors, which dominate the score
    for other vectors, then grow: at equal recall 15 to 20 % more is read.
    """
    return min(0.2, math.sqrt(PARALLEL / (dim - 1 + PARALLEL)))


def with_reach(config: str) -> str:
    """Search the partitions whose centres score at most 1 less than the best centre.

    They are searched best first, up to the number that a search asks for. The 1 is fixed at
    training time, but scores scale with the query: dividing the query by `reach` makes the limit
    `reach`.
    """
    return config.replace(
        "spilling_type: FIXED_NUMBER_OF_CENTERS",
        "spilling_type: ADDITIVE\n          spilling_threshold: 1.0",
        1,
    )


def with_widths(config: str, widths: list[tuple[int, int]]) -> str:
    """Return ScaNN's configuration with codes of the given widths instead of equal ones.

    widths: [(number of codes, dimensions of each)].
    """
    dim, codes = sum(count * width for count, width in widths), sum(count for count, _ in widths)
    blocks = " ".join(
        f"variable_blocks {{ num_blocks: {count} num_dims_per_block: {width} }}"
        for count, width in widths
    )
    chunks = (
        r"projection \{\s*input_dim: \d+\s+projection_type: (VARIABLE_)?CHUNK.*?"
        r"(?=\s*\}\s*fixed_point)"
    )
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
