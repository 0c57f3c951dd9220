"""What ScaNN's configuration can say and its builder cannot, put into the text that the builder writes."""

import re


def with_reach(config: str) -> str:
    """The partitions whose centres score at most 1 less than the best one's are searched, best first, up to the number a search gives.

    The 1 is fixed once trained, but products grow with the query: one divided by `reach` is one that reaches so far.
    """
    return config.replace("spilling_type: FIXED_NUMBER_OF_CENTERS", "spilling_type: ADDITIVE\n          spilling_threshold: 1.0", 1)


def with_widths(config: str, widths: list[tuple[int, int]]) -> str:
    """ScaNN's configuration with codes of these widths instead of equal ones."""
    dim, codes = sum(count * width for count, width in widths), sum(count for count, _ in widths)
    blocks = " ".join(f"variable_blocks {{ num_blocks: {count} num_dims_per_block: {width} }}" for count, width in widths)
    chunks = r"projection \{\s*input_dim: \d+\s+projection_type: (VARIABLE_)?CHUNK.*?(?=\s*\}\s*fixed_point)"
    config = re.sub(chunks, f"projection {{ input_dim: {dim} projection_type: VARIABLE_CHUNK {blocks}", config, flags=re.DOTALL)
    return config if codes > 256 else re.sub(r"(use_residual_quantization: True\s+use_global_topn: )False", r"\1True", config)
