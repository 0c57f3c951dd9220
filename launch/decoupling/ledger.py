"""The ledger: what each stage and each condition is worth, column by column, with intervals."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launch.errors import LaunchError


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of the ledger: `value` of the probe `probe`. sign: 1 where more is better, or -1.

    floor: the value of a guess or of nothing; None = the worst of the ledger.
    """

    name: str
    probe: str
    value: str
    scale: float = 1.0
    sign: int = 1
    digits: int = 1
    floor: float | None = None


COLUMNS = (
    Column("popular facts, % ranked first", "facts", "head", 100, floor=10.0),
    Column("middle facts, %", "facts", "middle", 100, floor=10.0),
    Column("rare facts, %", "facts", "tail", 100, floor=10.0),
    Column("all facts, % written", "facts", "all_exact", 100, floor=0.0),
    Column("general text, bits per byte", "general", "bits_per_byte", sign=-1, digits=2),
    Column("second domain, bits per byte", "domain", "bits_per_byte", sign=-1, digits=2),
    Column("minimal pairs, %", "pairs", "accuracy", 100, floor=50.0),
    Column("instructions, ROUGE-L", "instruct", "rouge_l", floor=0.0),
)
CONDITIONS = {
    "closed": "closed-book",
    "knn": "kNN-LM",
    "passages": "passages in context",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value with its 95 % interval over n examples. An end is None where there is no interval."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def error(self) -> float:
        """Standard error, from the width of the interval; nan where there is none."""
        if self.low is None or self.high is None:
            return math.nan
        return (self.high - self.low) / (2 * 1.959964)


@dataclasses.dataclass(frozen=True)
class Row:
    """A model after a stage, under a condition. cells: by column. seconds, bytes: of the probes."""

    model: str
    stage: str
    condition: str
    cells: Mapping[str, Cell]
    seconds: float
    bytes: int


@dataclasses.dataclass(frozen=True)
class Change:
    """A cell against another. verdict: "gained", "forgotten", or "" where 0 is in the interval."""

    value: float
    low: float
    high: float
    verdict: str


def changed(column: Column, after: Cell, before: Cell) -> Change:
    """Difference with its 95 % interval.

    The errors of the two are taken as independent. They are measured on the same examples, so that
    the interval is rather too wide.
    """
    value = after.value - before.value
    half = 1.959964 * math.hypot(after.error, before.error)
    low, high = value - half, value + half
    sure = low > 0 or high < 0
    better = "gained" if value * column.sign > 0 else "forgotten"
    return Change(value, low, high, better if sure else "")


def read(workdir: Path, models: Sequence[str], stages: Sequence[str]) -> list[Row]:
    """Rows of finished runs. Raises LaunchError for a run whose probes are missing."""
    return [
        row
        for model in models
        for stage in stages
        for row in _of_run(workdir / model / stage, model, stage)
    ]


def _of_run(run: Path, model: str, stage: str) -> Iterator[Row]:
    found: dict[str, float] = {}
    try:
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            found |= {k: v for k, v in json.loads(line).items() if k.startswith("eval/")}
    except (OSError, ValueError) as error:
        raise LaunchError(f"{run}: its metrics.jsonl cannot be read ({error})") from error
    for condition in CONDITIONS:
        try:
            cells = {column.name: _cell(found, column, condition) for column in COLUMNS}
            of = sorted({f"eval/{column.probe}_{condition}/" for column in COLUMNS})
            seconds = sum(found[name + "seconds"] for name in of)
            size = max(found[name + "bytes"] for name in of)
        except KeyError as error:
            raise LaunchError(f"{run}: its metrics.jsonl has no {error}; train it again") from error
        yield Row(model, stage, condition, cells, seconds, int(size))


def _cell(found: Mapping[str, float], column: Column, condition: str) -> Cell:
    name = f"eval/{column.probe}_{condition}/{column.value}"
    ends = [found[f"{name}_{end}"] for end in ("low", "high")]
    low, high = (None if end is None else column.scale * end for end in ends)
    return Cell(column.scale * found[name], low, high, int(found[f"{name}_n"]))


def changes(rows: Sequence[Row]) -> list[tuple[Row, Row, str, dict[str, Change]]]:
    """(row, what it is compared with, why, changes by column).

    A stage is compared with the stage before under the same condition; an open-book condition with
    closed-book after the same stage.
    """
    at = {(row.model, row.stage, row.condition): row for row in rows}
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        stages = list(dict.fromkeys(row.stage for row in rows if row.model == model))
        for condition in CONDITIONS:
            for before, after in itertools.pairwise(stages):
                pair = at[model, after, condition], at[model, before, condition]
                found.append((*pair, "stage", _each(*pair)))
        for stage in stages:
            for condition in [*CONDITIONS][1:]:
                pair = at[model, stage, condition], at[model, stage, "closed"]
                found.append((*pair, "memory", _each(*pair)))
    return found


def _each(after: Row, before: Row) -> dict[str, Change]:
    return {c.name: changed(c, after.cells[c.name], before.cells[c.name]) for c in COLUMNS}


def costs(workdir: Path) -> list[dict]:
    """Name, seconds and bytes of the finished stages of study.json; [] where there is none."""
    try:
        stages = json.loads((workdir / "study.json").read_text(encoding="utf-8"))["stages"]
        names = ("name", "seconds", "bytes")
        return [{name: s[name] for name in names} for s in stages if s["status"] == "done"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
