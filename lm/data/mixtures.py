"""Mixtures: an endless stream of rows from several packed sources in exact proportions.

The source of each position is computed deterministically, not drawn.

Rates follow T5 (Raffel et al. 2020, section 3.5.2). Source m with e_m documents has the rate
min(e_m, limit) ("examples-proportional mixing" with an artificial limit on the size of a data set),
or a given weight. Rates are then raised to 1 / temperature and normalised. A rate is a share of
rows. Rows have one length, so a weight is a share of tokens. Sizes are counted in documents, as in
T5, but scaled by rows per document: without a limit every document is seen equally often.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import batches
from lm.data.packed import Packed
from lm.data.read.sources import DataError
from lm.models.config import ConfigError

ONE = 2**48  # shares are integer multiples of 1 / ONE


@dataclasses.dataclass(frozen=True)
class Part:
    """Source of a mixture.

    weight: share relative to the other sources; None = by size.
    limit: maximum number of documents that count as its size, 0 = all.
    transform: its task's transform of rows.
    """

    name: str
    packed: Packed
    weight: float | None = None
    limit: int = 0
    transform: Any = None


class Mixture:
    """Endless stream: position -> fields of a row. A function of (seed, position) and the parts.

    Each source is reshuffled every epoch with its own seed. After n positions, each of M sources
    has been read n times its rate, within log2(M) + 1 rows. Positions are assigned by recursive
    halving of the list of sources: a half gets a position when its cumulative share crosses an
    integer. A source with rate 0 is never read. A source with rate 1 gives the same stream as
    without a mixture.
    Raises DataError when rows of the sources have different fields or shapes, and ConfigError for
    invalid rates.
    """

    def __init__(self, parts: Sequence[Part], temperature: float = 1.0, seed: int = 0):
        self.parts, self.seed = tuple(parts), seed
        self.rates = rates(self.parts, temperature)
        self._shares = _shares(self.rates)
        self._phases = np.random.default_rng((seed, 1)).integers(0, ONE, 2 * len(self.parts))
        used = [m for m, share in enumerate(self._shares) if share]
        self._streams = {
            m: batches.shuffled(self.parts[m].packed, seed + i) for i, m in enumerate(used)
        }
        every = [batches.lengths_of(part.packed, part.transform) for part in self.parts]
        self.lengths = max(own for own, _ in every), max(read for _, read in every)
        self._check_alike()

    def at(self, place: int) -> tuple[int, int]:
        """(source, number of its earlier rows) at a position, from 0."""
        low, high, node = 0, len(self.parts), 0
        while high - low > 1:
            middle = (low + high) // 2
            left, both = sum(self._shares[low:middle]), sum(self._shares[low:high])
            phase = int(self._phases[node]) * both // ONE
            before, after = ((n * left + phase) // both for n in (place, place + 1))
            if after > before:
                high, place, node = middle, before, node + 1
            else:
                low, place, node = middle, place - before, node + 2 * (middle - low)
        return low, place

    def __getitem__(self, place: int) -> dict[str, np.ndarray]:
        source, count = self.at(place)
        return self._row(self.parts[source], self._streams[source][count], place)

    def _row(self, part: Part, row: dict[str, np.ndarray], place: int) -> dict[str, np.ndarray]:
        """Apply the source's transform, and pad to the lengths of the mixture (segment 0)."""
        fields = batches.fields_of(row, part.transform, self.lengths, (self.seed, place))
        for name in batches.SIDES[0] + batches.SIDES[1]:
            if name in fields:
                fields[name] = np.pad(
                    fields[name], (0, self.lengths[name in batches.SIDES[1]] - len(fields[name]))
                )
        return fields

    @property
    def packed(self) -> list[Packed]:
        """Packed rows of every source with a rate above 0."""
        return [self.parts[m].packed for m in self._streams]

    @property
    def length(self) -> int:
        return self.packed[0].length

    @property
    def counts(self) -> dict[str, int]:
        return {
            name: sum(p.counts.get(name, 0) for p in self.packed)
            for name in dict.fromkeys(n for p in self.packed for n in p.counts)
        }

    def stats(self) -> dict[str, float]:
        """Totals over the sources of `Packed.stats`; shares are means over the rows."""
        every = [p.stats() for p in self.packed]
        total = sum(len(p) for p in self.packed)
        found: dict[str, float] = {}
        for name in dict.fromkeys(name for stats in every for name in stats):
            values = [stats.get(name, 0) for stats in every]
            means = name.endswith("filled")
            found[name] = (
                sum(v * len(p) for v, p in zip(values, self.packed, strict=True)) / total
                if means
                else sum(values)
            )
        return found | {"length": self.length}

    def described(self) -> list[str]:
        """One line per source: its rate, its size, and its epoch in rows of the mixture."""
        lines = []
        for part, rate in zip(self.parts, self.rates, strict=True):
            epoch = (
                f"{len(part.packed) / rate:,.0f} rows of the mixture an epoch"
                if rate
                else "never read"
            )
            lines.append(
                f"{part.name}: {rate:.2%} of the rows, {len(part.packed.document_bytes):,} "
                f"documents, {epoch}"
            )
        return lines

    def _check_alike(self) -> None:
        kinds = [
            {n: x.shape for n, x in self._row(part, batches.Rows(part.packed)[0], 0).items()}
            for part in self.parts
        ]
        for part, kind in zip(self.parts[1:], kinds[1:], strict=True):
            if kind != kinds[0]:
                one, other = (
                    ", ".join(f"{name} {list(shape)}" for name, shape in sorted(k.items()))
                    for k in (kind, kinds[0])
                )
                raise DataError(
                    f"rows of {part.name!r} are {one}, those of {self.parts[0].name!r} {other}: "
                    "they make no batch together"
                )


def rates(parts: Sequence[Part], temperature: float = 1.0) -> list[float]:
    """Share of rows of each part; the sum is 1. Raises ConfigError for invalid rates."""
    if not parts:
        raise ConfigError("data.mixture names no source")
    check_weights(
        {part.name: {"weight": part.weight, "limit": part.limit} for part in parts}, temperature
    )
    if parts[0].weight is not None:
        sizes = [float(part.weight or 0.0) for part in parts]
    else:
        documents = [len(part.packed.document_bytes) for part in parts]
        counted = [min(n, part.limit or n) / n for n, part in zip(documents, parts, strict=True)]
        sizes = [share * len(part.packed) for share, part in zip(counted, parts, strict=True)]
    largest = max(sizes)
    scaled = [(size / largest) ** (1 / temperature) for size in sizes]
    return [size / sum(scaled) for size in scaled]


def check_weights(parts: Mapping[str, Mapping[str, Any]], temperature: float) -> None:
    """Raise ConfigError, naming the field, for inconsistent weights, limits or temperature."""
    if not 0 < temperature < math.inf:
        raise ConfigError(
            f"data.temperature={temperature}: expected a number above 0; 1 keeps the rates, more "
            "evens them out"
        )
    weights = {name: part.get("weight") for name, part in parts.items()}
    given = {name: weight for name, weight in weights.items() if weight is not None}
    for name, part in parts.items():
        weight, limit = weights[name], part.get("limit") or 0
        if weight is not None and not 0 <= weight < math.inf:
            raise ConfigError(f"data.mixture.{name}.weight={weight}: expected 0 or more")
        if limit < 0:
            raise ConfigError(f"data.mixture.{name}.limit={limit}: expected 0 (no limit) or more")
        if limit and given:
            raise ConfigError(
                f"data.mixture.{name}.limit={limit} is of sources that count by their size, and "
                "there are weights; drop one"
            )
    if given and len(given) < len(parts):
        missing = next(name for name in parts if name not in given)
        raise ConfigError(
            f"data.mixture.{missing} has no weight, and {next(iter(given))} has one; give all a "
            "weight, or none"
        )
    if given and not sum(given.values()):
        raise ConfigError(
            f"the weights of data.mixture ({', '.join(given)}) sum to 0: nothing would be read; "
            "give one more than 0"
        )


def replay(new: str, old: str, share: float) -> dict[str, dict[str, Any]]:
    """Value of config.data.mixture for rehearsal (Scialom et al. 2022).

    new, old: files. share: share of the rows from `old`; 0 is the same as training on `new` alone.
    Raises ConfigError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"replay of a share of {share}: expected 0 to 1")
    return {
        "new": {"files": new, "weight": 1.0 - share},
        "old": {"files": old, "weight": float(share)},
    }


def _shares(rates: Sequence[float]) -> list[int]:
    """Integers proportional to the rates, at least 1 for a rate above 0."""
    return [max(1, round(rate * ONE)) if rate else 0 for rate in rates]
