"""Bijection between our parameter tree and another library's tensor names: one table, both ways.

A table is a tuple of rows (our path, their name, rule). "Ours" is this project, "theirs" the other
library. A row whose path the model does not have is skipped, so one table serves every option of a
family: biases, poolers and untied heads exist if the model's shapes have them.

If their name holds {i}, our array is stacked on axis 0 and {i} counts its entries. In a stack whose
layers have different shapes, "layers/block_{p}/x" for p = 0, 1, ..., the row of "layers/x" means
each block that has x, and {i} counts the layers across blocks.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import jax
import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Conversion of one array between the two sides, without the stacked axis."""

    to_ours: Callable[[np.ndarray, Shape], np.ndarray]  # (their array, our shape) -> our array
    to_theirs: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """Our paths, their name and the conversion rule.

    Several paths are merged along `axis` of their array; the rule applies to each part.
    """

    ours: tuple[str, ...]
    theirs: str
    rule: Rule
    axis: int = 0
    fold: int = 1  # leading dimensions, after merging, that their tensor flattens into one
    # their name of the first entry, if it differs from the pattern
    first: str = ""
    # space-separated paths that the model must have ("!path": must not have) for the row to apply
    given: str = ""

    @property
    def stacked(self) -> bool:
        return "{i}" in self.theirs

    @property
    def of_head(self) -> bool:
        return self.ours[0].startswith("head/")

    def counts(self, shapes: dict[str, Shape]) -> bool:
        """Tell whether the row applies to the model."""
        return all(
            (path.removeprefix("!") in shapes) != path.startswith("!")
            for path in self.given.split()
        )

    def their_shapes(self, shapes: list[Shape]) -> list[Shape]:
        """Shape of each of our parts on their side, before merging."""
        abstract = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        return [jax.eval_shape(self.rule.to_theirs, x).shape for x in abstract]

    def merged_shape(self, shapes: list[Shape]) -> Shape:
        """Shape of our parts on their side, merged and not yet folded."""
        first, *rest = self.their_shapes(shapes)
        return tuple(
            n + sum(s[axis] for s in rest) if axis == self.axis else n
            for axis, n in enumerate(first)
        )

    def their_shape(self, shapes: list[Shape]) -> Shape:
        """Shape that their tensor must have for our parts to have `shapes`."""
        merged = self.merged_shape(shapes)
        return (math.prod(merged[: self.fold]), *merged[self.fold :])

    def to_ours(self, array: np.ndarray, shapes: list[Shape]) -> list[np.ndarray]:
        sizes = [s[self.axis] for s in self.their_shapes(shapes)] if len(shapes) > 1 else []
        parts = (
            np.split(
                array.reshape(self.merged_shape(shapes)), np.cumsum(sizes)[:-1], axis=self.axis
            )
            if sizes
            else [array]
        )
        return [self.rule.to_ours(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def to_theirs(self, arrays: list[np.ndarray]) -> np.ndarray:
        parts = [self.rule.to_theirs(array) for array in arrays]
        merged = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)
        return merged.reshape(-1, *merged.shape[self.fold :])


@dataclasses.dataclass(frozen=True)
class Slot:
    """One of their tensors: its row, our paths, and the shapes on both sides.

    entry: index into our stacked arrays; None means the whole array.
    """

    row: Row
    ours: tuple[str, ...]
    entry: int | None
    our_shapes: list[Shape]
    their_shape: Shape


SAME = Rule(lambda array, shape: array, lambda array: array)
VECTOR = Rule(lambda array, shape: array.reshape(shape), lambda array: array.reshape(-1))


def linear(inputs: int = 1) -> Rule:
    """Rule for torch.nn.Linear [out, in] <-> ours [in..., out...].

    Our first `inputs` dimensions are the input's.
    """
    flat = conv1d(inputs)
    return Rule(
        lambda array, shape: flat.to_ours(array.T, shape), lambda array: flat.to_theirs(array).T
    )


def conv1d(inputs: int = 1) -> Rule:
    """Rule for GPT-2's Conv1D [in, out] <-> ours [in..., out...].

    Our first `inputs` dimensions are the input's.
    """
    return Rule(
        lambda array, shape: array.reshape(shape),
        lambda array: array.reshape(math.prod(array.shape[:inputs]), -1),
    )


def depthwise() -> Rule:
    """Rule for a depthwise torch.nn.Conv1d [C, 1, K] <-> ours [K, C]."""
    return Rule(lambda array, shape: array[:, 0].T, lambda array: array.T[:, None])


def per_head(inputs: int = 1) -> Rule:
    """Rule for a part of GPT-NeoX's merged projection [H, 1, K, in...] <-> ours [in..., H, K].

    Merge along axis 1 and fold 3 dimensions.
    """

    def to_ours(array, shape):
        flat = array.reshape(*shape[inputs:], *shape[:inputs])
        return flat.transpose(*range(2, 2 + inputs), 0, 1)

    def to_theirs(array):
        heads_first = array.transpose(inputs, inputs + 1, *range(inputs))
        return heads_first.reshape(heads_first.shape[0], 1, *heads_first.shape[1:])

    return Rule(to_ours, to_theirs)


def interleaved() -> Rule:
    """Rule for a rotary projection in llama.cpp's layout [H * K, D] <-> ours [D, H, K].

    Rotated feature pairs are adjacent in llama.cpp and K / 2 apart in ours.
    """

    def to_ours(array, shape):
        d, h, k = shape
        return array.reshape(h, k // 2, 2, d).swapaxes(1, 2).reshape(h * k, d).T.reshape(shape)

    def to_theirs(array):
        d, h, k = array.shape
        return array.reshape(d, h * k).T.reshape(h, 2, k // 2, d).swapaxes(1, 2).reshape(h * k, d)

    return Rule(to_ours, to_theirs)


def row(
    ours: str,
    theirs: str,
    rule: Rule = SAME,
    axis: int = 0,
    fold: int = 1,
    first: str = "",
    given: str = "",
) -> Row:
    """Build a row; `ours` may hold several space-separated paths. See `Row`."""
    return Row(tuple(ours.split()), theirs, rule, axis, fold, first, given)


def dense(ours: str, theirs: str, inputs: int = 1) -> list[Row]:
    """Rows of a torch.nn.Linear: its weight and, where the model has one, its bias."""
    return [
        row(ours, f"{theirs}.weight", linear(inputs)),
        row(f"{ours}_bias", f"{theirs}.bias", VECTOR),
    ]


def norm(ours: str, theirs: str) -> list[Row]:
    """Rows of a LayerNorm or RMSNorm: scale <-> weight and, where the model has one, bias."""
    return [row(f"{ours}/scale", f"{theirs}.weight"), row(f"{ours}/bias", f"{theirs}.bias")]


def table(*rows: Row | Iterable[Row]) -> tuple[Row, ...]:
    """Flatten rows and groups of rows, in the order in which they are read and written."""
    return tuple(r for group in rows for r in ([group] if isinstance(group, Row) else group))


def expand(rows: tuple[Row, ...], shapes: dict[str, Shape]) -> dict[str, Slot]:
    """Map their tensor names to Slots, for parameters of `shapes` {path: shape}, in table order.

    Raises LookupError naming the parameters that no row covers, which the other library cannot
    store.
    """
    slots: dict[str, Slot] = {}
    blocks = sorted(
        {path.split("/")[1] for path in shapes if path.startswith("layers/block_")},
        key=lambda b: int(b[6:]),
    ) or [""]
    for r in filter(lambda r: r.counts(shapes), rows):
        for block, paths in enumerate(dict.fromkeys(_inside(r.ours, block) for block in blocks)):
            if not all(path in shapes for path in paths):
                continue
            ours = [shapes[path] for path in paths]
            if not r.stacked:
                slots[r.theirs] = Slot(r, paths, None, ours, r.their_shape(ours))
                continue
            layer_shapes = [shape[1:] for shape in ours]
            their_shape = r.their_shape(layer_shapes)
            for entry in range(ours[0][0]):
                i = entry * len(blocks) + block
                slots[r.first if r.first and i == 0 else r.theirs.format(i=i)] = Slot(
                    r, paths, entry, layer_shapes, their_shape
                )
    homeless = sorted(set(shapes) - {path for slot in slots.values() for path in slot.ours})
    if homeless:
        raise LookupError(f"no row of the table covers {', '.join(homeless)}")
    return slots


def _inside(paths: tuple[str, ...], block: str) -> tuple[str, ...]:
    """Paths of a row in one block of the repeating stack.

    Paths outside the stack are the same for every block.
    """
    return tuple(
        path.replace("layers/", f"layers/{block}/", 1)
        if block and path.startswith("layers/")
        else path
        for path in paths
    )
