"""Which parameters are matrices, told by the logical names of their dimensions: what Muon orthogonalises and LoRA adapts."""

import dataclasses
import re

TABLES = r"(^|/)embeddings/(token|position|type)$|(^|/)table$|conv$|a_log$|(^|_)bias$"  # looked up, convolved or added


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The dimensions of a parameter that maps `inputs` to `outputs`; `stacked`: layers, of which each is a matrix of its own."""

    stacked: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def matrix(path: str, axes: tuple[str, ...]) -> Matrix | None:
    """The parameter at `path`, whose dimensions are called `axes`, as a matrix; None for a vector or a table.

    Heads and their width are one side of a matrix: query [L, D, H, K] maps D to H * K, out [L, H, K, D] maps H * K to D.
    """
    if re.search(TABLES, path):
        return None
    stacked = tuple(d for d, name in enumerate(axes) if name == "layers")
    sides: list[list[int]] = []
    for d, name in enumerate(axes):
        if d in stacked:
            continue
        if name == "head_dim" and sides and axes[d - 1] in ("heads", "kv_heads"):
            sides[-1].append(d)
        else:
            sides.append([d])
    return Matrix(stacked, tuple(sides[0]), tuple(sides[1])) if len(sides) == 2 else None
