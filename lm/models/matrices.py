"""Parameters that are matrices, by their logical axes. Muon orthogonalises and LoRA adapts them."""

import dataclasses
import re

# Paths of parameters that are looked up, convolved or added.
TABLES = r"(^|/)embeddings/(token|position|type)$|(^|/)table$|conv$|a_log$|(^|_)bias$"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Dimensions of a parameter that maps `inputs` to `outputs`.

    stacked: dimensions over layers, each of which is a separate matrix.
    """

    stacked: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def matrix(path: str, axes: tuple[str, ...]) -> Matrix | None:
    """Dimensions of the parameter at `path` as a matrix; None for a vector or a table.

    axes: logical names of its dimensions. Heads and their width form one side of a matrix: query
    [L, D, H, K] maps D to H * K, out [L, H, K, D] maps H * K to D.
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
