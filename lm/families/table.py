"""The bijection between our parameter tree and another library's tensor names: one table, both directions.

A table is a tuple of rows (our path, their name, rule). A row whose path the model does not have is skipped, so one table
serves every option of a family: biases, poolers and untied heads exist exactly when the model's own shapes say so. Where
their name holds {i}, our array is stacked on axis 0 and {i} counts its entries. In a stack whose layers have different shapes,
"layers/block_{p}/x" for p = 0, 1, ..., the row of "layers/x" means each block that has x, and {i} counts the layers across blocks.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import jax
import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one array changes between the two sides; neither direction knows about the stacking."""

    to_ours: Callable[[np.ndarray, Shape], np.ndarray]  # (their array, our shape) -> our array
    to_theirs: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
    """Our paths (several if they merge them along `axis` of their array), their name, and the rule for each part."""

    ours: tuple[str, ...]
    theirs: str
    rule: Rule
    axis: int = 0
    fold: int = 1  # leading dimensions, after merging, that their tensor holds as one
    first: str = ""  # their name of our first entry, where it is not like the others'
    given: str = ""  # paths, separated by spaces, that the model must have, or with a "!" must not have, for the row to count

    @property
    def stacked(self) -> bool:
        return "{i}" in self.theirs

    @property
    def of_head(self) -> bool:
        return self.ours[0].startswith("head/")

    def counts(self, shapes: dict[str, Shape]) -> bool:
        """Is the model one that the row is for?"""
        return all(
            (path.removeprefix("!") in shapes) != path.startswith("!")
            for path in self.given.split()
        )

    def their_shapes(self, shapes: list[Shape]) -> list[Shape]:
        """The shape of each of our parts on their side, before merging."""
        abstract = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        return [jax.eval_shape(self.rule.to_theirs, x).shape for x in abstract]

    def merged_shape(self, shapes: list[Shape]) -> Shape:
        """The shape of our parts on their side, merged and not yet folded."""
        first, *rest = self.their_shapes(shapes)
        return tuple(
            n + sum(s[axis] for s in rest) if axis == self.axis else n
            for axis, n in enumerate(first)
        )

    def their_shape(self, shapes: list[Shape]) -> Shape:
        """The shape their tensor must have for our parts to have `shapes`."""
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
    """One of their tensors: its row, our paths, which entry of the stacked arrays there it is (None: all of it), both sides' shapes."""

    row: Row
    ours: tuple[str, ...]
    entry: int | None
    our_shapes: list[Shape]
    their_shape: Shape


SAME = Rule(lambda array, shape: array, lambda array: array)
VECTOR = Rule(lambda array, shape: array.reshape(shape), lambda array: array.reshape(-1))


def linear(inputs: int = 1) -> Rule:
    """torch.nn.Linear [out, in] <-> ours [in..., out...], whose first `inputs` dimensions are the input's."""
    flat = conv1d(inputs)
    return Rule(
        lambda array, shape: flat.to_ours(array.T, shape), lambda array: flat.to_theirs(array).T
    )


def conv1d(inputs: int = 1) -> Rule:
    """GPT-2's Conv1D [in, out] <-> ours [in..., out...], whose first `inputs` dimensions are the input's."""
    return Rule(
        lambda array, shape: array.reshape(shape),
        lambda array: array.reshape(math.prod(array.shape[:inputs]), -1),
    )


def depthwise() -> Rule:
    """torch.nn.Conv1d with a group for each channel [C, 1, K] <-> ours [K, C]."""
    return Rule(lambda array, shape: array[:, 0].T, lambda array: array.T[:, None])


def per_head(inputs: int = 1) -> Rule:
    """GPT-NeoX's merged projection, a part of it [H, 1, K, in...], <-> ours [in..., H, K]; merge along axis 1 and fold 3 dimensions."""

    def to_ours(array, shape):
        flat = array.reshape(*shape[inputs:], *shape[:inputs])
        return flat.transpose(*range(2, 2 + inputs), 0, 1)

    def to_theirs(array):
        heads_first = array.transpose(inputs, inputs + 1, *range(inputs))
        return heads_first.reshape(heads_first.shape[0], 1, *heads_first.shape[1:])

    return Rule(to_ours, to_theirs)


def interleaved() -> Rule:
    """A rotary projection in llama.cpp's layout [H * K, D], feature pairs adjacent, <-> ours [D, H, K], pairs K / 2 apart."""

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
    """A row of the table; several of our paths, separated by spaces, merge into one of their tensors along `axis`. See `Row`."""
    return Row(tuple(ours.split()), theirs, rule, axis, fold, first, given)


def dense(ours: str, theirs: str, inputs: int = 1) -> list[Row]:
    """torch.nn.Linear: `theirs`.weight and, where the model has it, `ours`_bias <-> `theirs`.bias."""
    return [
        row(ours, f"{theirs}.weight", linear(inputs)),
        row(f"{ours}_bias", f"{theirs}.bias", VECTOR),
    ]


def norm(ours: str, theirs: str) -> list[Row]:
    """A LayerNorm or RMSNorm: scale <-> weight and, where the model has it, bias."""
    return [row(f"{ours}/scale", f"{theirs}.weight"), row(f"{ours}/bias", f"{theirs}.bias")]


def table(*rows: Row | Iterable[Row]) -> tuple[Row, ...]:
    """Rows and groups of rows, in the order in which they are read and written."""
    return tuple(r for group in rows for r in ([group] if isinstance(group, Row) else group))


def expand(rows: tuple[Row, ...], shapes: dict[str, Shape]) -> dict[str, Slot]:
    """Their tensor names for a model whose parameters have `shapes` {path: shape}, in the order of the table.

    Raises LookupError naming the parameters that no row writes: the other library has no place for them.
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
    """The paths of a row in one block of the repeating stack; those outside of it are the same for every block."""
    return tuple(
        path.replace("layers/", f"layers/{block}/", 1)
        if block and path.startswith("layers/")
        else path
        for path in paths
    )
