"""Read the collectives of a compiled program from its HLO text."""

import dataclasses
import math
import re

import numpy as np

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
REDUCTIONS = KINDS[:2]
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation|branch_computations)="
    r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\((.+?)\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array that a collective operation communicates.

    shape, dtype: of its result on one device. loops: number of loops around the operation. times:
    how often it runs in one run of the program. groups: devices that communicate, or ().
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    loops: int
    times: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def bytes(self) -> int:
        """Size of the result over all runs."""
        return self.times * _BYTES.get(self.dtype, 4) * math.prod(self.shape)


def of(text: str) -> list[Collective]:
    """Collectives of `compiled.as_text()`, one for every array of a combined operation."""
    bodies, entry, name = {}, "", ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[1]
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    return list(_walk(bodies, entry, 0, 1))


def _walk(bodies: dict[str, list[str]], name: str, loops: int, times: int):
    for line in bodies[name]:
        if found := _OPERATION.search(line):
            for dtype, shape in _ARRAY.findall(found[1]):
                sizes = tuple(map(int, filter(None, shape.split(","))))
                yield Collective(found[2], dtype, sizes, loops, times, groups(line))
            continue
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        for role, several, one in _CALLED.findall(line):
            inside = role in ("body", "condition")
            for called in (several or one).replace("%", "").split(", "):
                if called in bodies:
                    runs = int(trips[1]) if inside and trips else 1
                    yield from _walk(bodies, called, loops + inside, times * runs)


def groups(line: str) -> tuple[tuple[int, ...], ...]:
    """Device ids that communicate with each other. Raises ValueError for a notation not known."""
    if found := _LISTED.search(line) or _PAIRS.search(line):
        return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", found[1]))
    if found := _MESH.search(line):  # axes of a mesh, of which some communicate
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        chosen = re.findall(r"'(\w+)'(:)?", found[3])
        if not any(part for _, part in chosen):
            shape = [int(size) for size in sizes.values()]
            ids = (_iota(found[2]) if found[2] else np.arange(math.prod(shape))).reshape(shape)
            of_group = [list(sizes).index(name) for name, _ in chosen]
            ids = np.moveaxis(ids, of_group, range(-len(of_group), 0))
            width = math.prod(shape[axis] for axis in of_group)
            return tuple(map(tuple, ids.reshape(-1, width).tolist()))
    elif found := re.search(r"replica_groups=(\[[^ ]+)", line):
        return tuple(map(tuple, _iota(found[1]).tolist()))
    raise ValueError(f"the devices of this operation cannot be read: {line.strip()}")


def _iota(text: str) -> np.ndarray:
    """Ids from [shape]<=[sizes]T(axes): an iota of `sizes`, transposed and reshaped."""
    shape, sizes, axes = (
        [int(n) for n in part.split(",")] if part else None for part in _IOTA.match(text).groups()
    )
    ids = np.arange(math.prod(shape)).reshape(sizes or shape)
    return (ids.transpose(axes) if axes else ids).reshape(shape)


def axes(found: Collective, mesh) -> set[str]:
    """Mesh axes over which the devices of a collective differ."""
    places = [np.array(np.unravel_index(group, mesh.axis_sizes)) for group in found.groups]
    differs = np.any([(p != p[:, :1]).any(1) for p in places], axis=0)
    return {name for name, one in zip(mesh.axis_names, differs, strict=True) if one}
