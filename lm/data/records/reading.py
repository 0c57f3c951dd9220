"""Records of instruct data, read from files of the common formats.

Unusable records are counted, and named with their file and line.
"""

import collections
import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from lm.data.read import files, sources
from lm.data.read.sources import DataError
from lm.data.records import superni
from lm.data.records.examples import Preference, Record
from lm.data.records.formats import (
    FORMATS,
    context,
    detect,
    dialogue,
    preference,
    prepend,
    unread_fields,
)
from lm.data.records.turns import BadRecord
from lm.models.config import ConfigError, nearest

PARTS = ("train", "held_out", "holdout", "all")
NAMED = 3  # bad records or tasks that a message names
PAIR = ("prompt", "completion")  # fields of the format completion
SHOWN = 12  # unread fields that are reported, most frequent first


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options for reading records.

    format: one of FORMATS, or "auto": detected from the first record of each file.
    cap: maximum records per task, 0 = all.
    hold_out: tasks kept out of training: comma-separated names or globs, or a share such as "0.1",
    which selects tasks by a hash of their name.
    max_bad_share: share of bad records above which reading fails. seed: of random selections.
    holdout: share of the training records that is held out, selected by a hash of their content.
    pair: names of the two fields of the format completion in the files.
    """

    format: str = "auto"
    cap: int = 0
    hold_out: str = ""
    max_bad_share: float = 0.0
    seed: int = 0
    holdout: float = 0.0
    pair: tuple[str, str] = PAIR


@dataclasses.dataclass(frozen=True)
class Read:
    """Records, with what was noticed while reading them.

    bad: number of records left out. warnings: one sentence each.
    unread: field that nothing reads -> number of records that have it.
    """

    records: list[Record]
    bad: int = 0
    warnings: tuple[str, ...] = ()
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)


def find(patterns: str) -> tuple[list[str], list[str]]:
    """(files, warnings) for comma-separated patterns.

    A pattern is a file, a glob, a folder of records (or with a subfolder tasks/), or a .txt list of
    tasks.
    """
    found, warnings = [], []
    for pattern in files.split(patterns):
        local = "://" not in pattern and not pattern.startswith(files.SETS)
        folders = [path for path in files.matching(pattern) if os.path.isdir(path)] if local else []
        for folder in folders:
            tasks = os.path.join(folder, "tasks")
            found += files.inside(tasks if os.path.isdir(tasks) else folder, files.RECORDS)
        if folders:
            continue
        for file in sources.find_files(pattern):
            listed, doubts = superni.listed(file) if file.endswith(".txt") else ([file], [])
            found += listed
            warnings += doubts
    if not found:
        raise DataError(
            "no data files were given; give a file, a folder or a glob such as 'data/*.jsonl'"
        )
    return list(dict.fromkeys(found)), warnings


def read(patterns: str, reading: Reading, part: str = "train") -> Read:
    """Read the records of the files.

    part: "train"; "held_out", the tasks of `reading.hold_out`; "holdout", the share of
    `reading.holdout`; or "all". In training, `reading.cap` records per task and one of the correct
    answers are drawn from the seed; otherwise the first are used.
    Raises DataError when there are no records or more bad ones than `reading.max_bad_share` allows,
    and ConfigError for an unknown format.
    """
    if reading.format != "auto" and reading.format not in FORMATS:
        raise ConfigError(
            f"task.format={reading.format!r} is unknown{nearest(reading.format, FORMATS)}; one "
            f"of auto, {', '.join(FORMATS)}"
        )
    named, warnings = find(patterns)
    found: list[Record] = []
    bad: list[str] = []
    doubts: dict[str, list[str]] = collections.defaultdict(list)
    unread: collections.Counter[str] = collections.Counter()
    for file in named:
        for where, record in _records(file, reading, doubts, unread):
            if isinstance(record, Record):
                found.append(record)
            else:
                bad.append(f"{where}: {record}")
                if not reading.max_bad_share:
                    raise DataError(bad[0])
    total = len(found) + len(bad)
    if len(bad) > reading.max_bad_share * total:
        raise DataError(
            f"{len(bad):,} of {total:,} records cannot be used, more than "
            f"data.max_bad_share={reading.max_bad_share:g} allows: "
            f"{'; '.join(bad[:NAMED])}"
        )
    warnings += [
        f"{what}: {len(tasks):,} tasks ({', '.join(tasks[:NAMED])}{', ...' * (len(tasks) > NAMED)})"
        for what, tasks in doubts.items()
    ]
    warnings += (
        [f"{len(bad):,} of {total:,} records were left out: {'; '.join(bad[:NAMED])}"]
        if bad
        else []
    )
    if not total:
        raise DataError(f"{patterns} holds no record at all; check the files")
    records = _capped(
        _of_share(_of_part(found, reading, part), reading, part), reading, drawn=part == "train"
    )
    if not records:
        which = f" of those that are {part} (task.hold_out, data.holdout_share)"
        raise DataError(f"{patterns} holds no record{'' if part == 'all' else which}")
    return Read(
        _one_reference(records, reading.seed) if part == "train" else records,
        len(bad),
        tuple(warnings),
        dict(unread.most_common(SHOWN)),
    )


def preferences(patterns: str) -> Iterator[Preference]:
    """Read preference pairs {prompt, chosen, rejected}.

    Raises DataError, with file and line, for any other row.
    """
    for file in find(patterns)[0]:
        for where, row, problem in sources.rows(file):
            try:
                pair, (before, tools) = (
                    preference(row, where),
                    context(row) if isinstance(row, dict) else ((), ()),
                )
                if tools:
                    raise BadRecord(
                        "'tools' have no place in a preference pair; remove them, or the record"
                    )
                yield dataclasses.replace(pair, prompt=prepend(before, pair.prompt))
            except BadRecord as reason:
                raise DataError(f"{where}: {problem or reason}") from None


def _records(
    file: str, reading: Reading, doubts: dict[str, list[str]], unread: collections.Counter[str]
) -> Iterator[tuple[str, Record | str]]:
    stem, format = pathlib.Path(file).stem, reading.format
    for where, row, problem in sources.rows(file):
        if problem:
            yield where, problem
            continue
        try:
            row = _paired(row, reading)
        except BadRecord as reason:
            yield where, str(reason)
            continue
        format = detect(row, where) if format == "auto" else format
        if format == "superni":
            if not superni.is_task(row):
                raise DataError(f"{where}: expected a task with 'Definition' and 'Instances'")
            for doubt in superni.doubts(row):
                doubts[doubt].append(stem)
            unread.update(superni.unread(row))
            yield from superni.records(row, stem, file)
            continue
        try:
            if not isinstance(row, dict):
                raise BadRecord(f"it is {type(row).__name__}, expected an object")
            read = list(FORMATS[format](row))
            before, tools = context(row)
            unread.update(unread_fields(row, format))
            for record in read:
                turns = (
                    prepend(before, record.turns or dialogue(record))
                    if before or (tools and not record.turns)
                    else record.turns
                )
                yield (
                    where,
                    dataclasses.replace(
                        record, turns=turns, tools=tools, task=record.task or stem, source=where
                    ),
                )
        except BadRecord as reason:
            yield where, str(reason)


def _paired(row, reading: Reading):
    """The row with its fields `reading.pair` under the names of the format completion."""
    if reading.pair == PAIR or not isinstance(row, dict):
        return row
    missing = [name for name in reading.pair if name not in row]
    if not missing:
        rest = {name: value for name, value in row.items() if name not in (*PAIR, *reading.pair)}
        return rest | {name: row[own] for name, own in zip(PAIR, reading.pair, strict=True)}
    if reading.format == "completion":
        raise BadRecord(f"no field {missing[0]!r}; it has {', '.join(map(repr, row))}")
    return row


def counted(unread: Mapping[str, int]) -> dict[str, int]:
    """`Read.unread` as counts for packed rows."""
    return {f"records with the unread field {name!r}": number for name, number in unread.items()}


def notes(read: Read, unscored: Mapping[str, int]) -> list[str]:
    """Return a sentence for each field that an evaluation does not use.

    unscored: field -> number of references that have it.
    """
    found = [
        f"{number:,} {what}, which is ignored" for what, number in counted(read.unread).items()
    ]
    return found + [
        f"{number:,} references with the field {name!r}, which is not compared"
        for name, number in unscored.items()
    ]


def _of_part(records: list[Record], reading: Reading, part: str) -> list[Record]:
    if part == "all" or not reading.hold_out.strip():
        return [] if part == "held_out" else records
    tasks = sorted({record.task for record in records})
    held = held_out(tasks, reading.hold_out)
    return [record for record in records if (record.task in held) == (part == "held_out")]


def _of_share(records: list[Record], reading: Reading, part: str) -> list[Record]:
    if not reading.holdout or part not in ("train", "holdout"):
        return records
    content = lambda r: json.dumps(
        [r.instruction, r.input, r.output, [(turn.role, turn.text) for turn in r.turns]]
    )
    return [
        record
        for record in records
        if sources.is_held_out(content(record), reading.holdout) == (part == "holdout")
    ]


def held_out(tasks: list[str], hold_out: str) -> set[str]:
    """Tasks kept out of training. Raises ConfigError for a name or glob that matches none."""
    try:
        share = float(hold_out)
    except ValueError:
        found = set()
        for pattern in filter(None, (p.strip() for p in hold_out.split(","))):
            matched = fnmatch.filter(tasks, pattern)
            if not matched:
                raise ConfigError(
                    f"task.hold_out: no task is called {pattern!r}{nearest(pattern, tasks)}"
                ) from None
            found.update(matched)
        return found
    if not 0 < share < 1:
        raise ConfigError(
            f"task.hold_out={hold_out!r}: expected names or globs of tasks, or a share between 0 "
            "and 1"
        )
    return {task for task in tasks if _hash(task) < share * 2**64}


def _capped(records: list[Record], reading: Reading, drawn: bool) -> list[Record]:
    if not reading.cap:
        return records
    places: dict[str, list[int]] = collections.defaultdict(list)
    for i, record in enumerate(records):
        places[record.task].append(i)
    kept: list[int] = []
    for task, found in places.items():
        if drawn and len(found) > reading.cap:
            found = [
                found[i]
                for i in np.random.default_rng((reading.seed, _hash(task))).permutation(len(found))
            ]
        kept += found[: reading.cap]
    return [records[i] for i in sorted(kept)]


def _one_reference(records: list[Record], seed: int) -> list[Record]:
    return [
        dataclasses.replace(
            record,
            output=record.references[
                np.random.default_rng((seed, i)).integers(len(record.references))
            ],
        )
        if len(record.references) > 1
        else record
        for i, record in enumerate(records)
    ]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
