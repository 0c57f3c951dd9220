"""Records of instruct data, from files of every usual format. What cannot be used is named with its file and line, and counted."""

import collections
import dataclasses
import fnmatch
import glob
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lm.data import sources, superni
from lm.data.examples import Preference, Record, Turn
from lm.data.sources import DataError
from lm.models.config import ConfigError, nearest

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "function": "tool", "ipython": "tool",
}  # fmt: skip
END = "<|endoftext|>"  # GPT-3's files end completions so; a template ends them itself
PARTS = ("train", "held_out", "all")
NAMED = 3  # bad records or tasks named in a message


@dataclasses.dataclass(frozen=True)
class Reading:
    """format: of FORMATS, or "auto": by the first record of each file.   cap: most records of a task, 0 = all.

    hold_out: whole tasks kept out of training: names or globs, comma-separated, or a share such as "0.1", by a hash of the name.
    max_bad_share: share of bad records above which reading stops.   seed: of what is drawn.
    """

    format: str = "auto"
    cap: int = 0
    hold_out: str = ""
    max_bad_share: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Read:
    """bad: records left out.   warnings: one sentence each."""

    records: list[Record]
    bad: int = 0
    warnings: tuple[str, ...] = ()


class _Bad(Exception):
    """Why a record cannot be used, and what to do."""


def find(patterns: str) -> tuple[list[str], list[str]]:
    """(files, warnings) of comma-separated files, globs, folders of .json and .jsonl (or with tasks/ of them), lists of tasks (.txt)."""
    found, warnings = [], []
    for pattern in filter(None, (p.strip() for p in patterns.split(","))):
        folders = [p for p in sorted(glob.glob(os.path.expanduser(pattern))) if os.path.isdir(p)]
        for folder in folders:
            inside = os.path.join(folder, "tasks") if os.path.isdir(os.path.join(folder, "tasks")) else folder
            files = sorted(str(p) for p in pathlib.Path(inside).iterdir() if p.suffix in (".json", ".jsonl"))
            if not files:
                raise DataError(f"the folder {inside} holds no .json or .jsonl file")
            found += files
        if folders:
            continue
        for file in sources.find_files(pattern):
            files, doubts = superni.listed(file) if file.endswith(".txt") else ([file], [])
            found += files
            warnings += doubts
    if not found:
        raise DataError("no data files were given; give a file, a folder or a glob such as 'data/*.jsonl'")
    return list(dict.fromkeys(found)), warnings


def read(patterns: str, reading: Reading, part: str = "train") -> Read:
    """The records of the files: those of training, of the tasks it leaves out ("held_out"), or "all".

    In training, `reading.cap` records of a task and one of the right answers are drawn from the seed; else they are the first.
    Raises DataError when there are none, or more bad ones than `reading.max_bad_share` says; ConfigError for a format that is unknown.
    """
    if reading.format != "auto" and reading.format not in FORMATS:
        raise ConfigError(f"data.format={reading.format!r} is unknown{nearest(reading.format, FORMATS)}; one of auto, {', '.join(FORMATS)}")
    files, warnings = find(patterns)
    found: list[Record] = []
    bad: list[str] = []
    doubts: dict[str, list[str]] = collections.defaultdict(list)
    for file in files:
        for where, record in _records(file, reading.format, doubts):
            if isinstance(record, Record):
                found.append(record)
            else:
                bad.append(f"{where}: {record}")
                if not reading.max_bad_share:
                    raise DataError(bad[0])
    total = len(found) + len(bad)
    if len(bad) > reading.max_bad_share * total:
        raise DataError(
            f"{len(bad):,} of {total:,} records cannot be used, more than data.max_bad_share={reading.max_bad_share:g} allows: "
            f"{'; '.join(bad[:NAMED])}"
        )
    warnings += [
        f"{what}: {len(tasks):,} tasks ({', '.join(tasks[:NAMED])}{', ...' * (len(tasks) > NAMED)})" for what, tasks in doubts.items()
    ]
    warnings += [f"{len(bad):,} of {total:,} records were left out: {'; '.join(bad[:NAMED])}"] if bad else []
    if not total:
        raise DataError(f"{patterns} holds no record at all; check the files")
    records = _capped(_of_part(found, reading, part), reading, drawn=part == "train")
    if not records:
        raise DataError(f"{patterns} holds no record{'' if part == 'all' else f' of the tasks that are {part} (data.hold_out)'}")
    return Read(_one_reference(records, reading.seed) if part == "train" else records, len(bad), tuple(warnings))


def preferences(patterns: str) -> Iterator[Preference]:
    """The preference pairs of the files: {prompt, chosen, rejected}. Raises DataError, with file and line, for anything else."""
    for file in find(patterns)[0]:
        for where, row, problem in sources.rows(file):
            try:
                yield _preference(row, where)
            except _Bad as reason:
                raise DataError(f"{where}: {problem or reason}") from None


def _records(file: str, format: str, doubts: dict[str, list[str]]) -> Iterator[tuple[str, Record | str]]:
    stem = pathlib.Path(file).stem
    for where, row, problem in sources.rows(file):
        if problem:
            yield where, problem
            continue
        format = detect(row, where) if format == "auto" else format
        if format == "superni":
            if not superni.is_task(row):
                raise DataError(f"{where}: expected a task with 'Definition' and 'Instances'")
            for doubt in superni.doubts(row):
                doubts[doubt].append(stem)
            yield from superni.records(row, stem, file)
            continue
        try:
            if not isinstance(row, dict):
                raise _Bad(f"it is {type(row).__name__}, expected an object")
            for record in FORMATS[format](row):
                yield where, dataclasses.replace(record, task=record.task or stem, source=where)
        except _Bad as reason:
            yield where, str(reason)


def detect(row: object, where: str) -> str:
    """The format of a file, by its first record. Raises DataError when it is none of FORMATS."""
    fields = set(row) if isinstance(row, dict) else set()
    for format, needed in _FIELDS.items():
        if needed <= fields:
            return format
    if {"chosen", "rejected"} <= fields:
        raise DataError(f"{where}: a preference pair has two responses; data.format='preference' trains on the chosen one")
    if "text" in fields:
        raise DataError(f"{where}: a text has no response to train on; use the objective 'next_token', or give prompts with responses")
    known = "; ".join(f"{format}: {', '.join(sorted(needed))}" for format, needed in _FIELDS.items())
    has = f"it has the fields {', '.join(map(repr, sorted(map(str, fields))))}" if fields else f"it is {type(row).__name__}"
    raise DataError(f"{where}: the format is none of those known ({known}); {has}")


def _alpaca(row: Mapping) -> Iterator[Record]:
    yield Record(_text(row, "instruction"), _text(row, "input", ""), _response(row, "output"), task=_text(row, "task", ""))


def _self_instruct(row: Mapping) -> Iterator[Record]:
    instruction, instances = _text(row, "instruction"), row.get("instances")
    if not isinstance(instances, list) or not instances:
        raise _Bad("'instances' is not a list with an instance in it")
    for instance in instances:
        if not isinstance(instance, dict):
            raise _Bad(f"an instance is {type(instance).__name__}, expected an object")
        yield Record(instruction, _text(instance, "input", ""), _response(instance, "output"), task=_text(row, "name", ""))


def _completion(row: Mapping) -> Iterator[Record]:
    task = _text(row, "task", "")
    if isinstance(row["prompt"], list):
        yield Record(turns=_conversation([*row["prompt"], *_listed(row, "completion")], "role", "content"), task=task)
        return
    prompt = _text(row, "prompt")
    if not prompt:
        raise _Bad("'prompt' is empty; there is nothing to answer")
    completion = _response({"completion": _text(row, "completion").removesuffix(END)}, "completion")
    yield Record(prompt, output=completion, task=task)


def _messages(row: Mapping) -> Iterator[Record]:
    yield Record(turns=_conversation(_listed(row, "messages"), "role", "content"), task=_text(row, "task", ""))


def _sharegpt(row: Mapping) -> Iterator[Record]:
    turns = _listed(row, "conversations")
    system = [{"from": "system", "value": row["system"]}] if row.get("system") else []
    yield Record(turns=_conversation([*system, *turns], "from", "value"), task=_text(row, "task", ""))


def _chosen(row: Mapping) -> Iterator[Record]:
    """The answer that was preferred: what a model learns before preference tuning (Rafailov et al. 2023, section 4)."""
    pair = _preference(row, "")
    yield Record(turns=(*pair.prompt, Turn("assistant", pair.chosen)), task=_text(row, "task", ""))


FORMATS: dict[str, Callable[[Mapping], Iterator[Record]]] = {
    "superni": lambda row: iter(()),  # a file at a time, in lm/data/superni.py
    "self_instruct": _self_instruct,
    "alpaca": _alpaca,
    "completion": _completion,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "preference": _chosen,
}
_FIELDS = {
    "superni": {"Definition", "Instances"}, "self_instruct": {"instruction", "instances"}, "alpaca": {"instruction", "output"},
    "completion": {"prompt", "completion"}, "messages": {"messages"}, "sharegpt": {"conversations"},
}  # fmt: skip


def _conversation(rows: list, role: str, content: str) -> tuple[Turn, ...]:
    turns = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or role not in row or content not in row:
            raise _Bad(f"turn {number} has no {role!r} and {content!r}")
        if row[role] not in ROLES:
            raise _Bad(f"turn {number} is of {row[role]!r}, expected one of {', '.join(ROLES)}")
        said = row[content]
        if isinstance(said, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in said):
            said = "".join(part["text"] for part in said)
        if not isinstance(said, str):
            raise _Bad(f"turn {number}: {content!r} is {type(said).__name__}, expected a text")
        turns.append(Turn(ROLES[row[role]], said))
    if not turns or turns[-1].role != "assistant":
        raise _Bad(f"the conversation ends with {turns[-1].role if turns else 'nothing'}, expected the assistant's turn; cut it there")
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise _Bad(f"turn {number}: the response is empty; remove the conversation, or set data.max_bad_share to leave such out")
    if len(turns) == 1:
        raise _Bad("there is nothing before the assistant's turn")
    return tuple(turns)


def _preference(row: Any, where: str) -> Preference:
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= set(row):
        raise _Bad("expected the fields 'prompt', 'chosen' and 'rejected'")
    if isinstance(row["chosen"], list):
        given = row["prompt"] if isinstance(row.get("prompt"), list) else []
        chosen, rejected = (_conversation([*given, *_listed(row, name)], "role", "content") for name in ("chosen", "rejected"))
        if chosen[:-1] != rejected[:-1]:
            raise _Bad("'chosen' and 'rejected' answer different prompts")
        return Preference(chosen[:-1], chosen[-1].text, rejected[-1].text, where)
    return Preference((Turn("user", _text(row, "prompt")),), _response(row, "chosen"), _response(row, "rejected"), where)


def _text(row: Mapping, name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None and default is not None:
        return default
    if name not in row and default is None:
        raise _Bad(f"no field {name!r}; it has {', '.join(map(repr, row))}")
    if not isinstance(value, str):
        raise _Bad(f"field {name!r} is {type(value).__name__}, expected a text")
    return value


def _response(row: Mapping, name: str) -> str:
    text = _text(row, name)
    if not text.strip():
        raise _Bad(f"the response {name!r} is empty; remove the record, or set data.max_bad_share to leave such records out")
    return text


def _listed(row: Mapping, name: str) -> list:
    if not isinstance(row.get(name), list):
        raise _Bad(f"field {name!r} is {type(row.get(name)).__name__}, expected a list of turns")
    return row[name]


def _of_part(records: list[Record], reading: Reading, part: str) -> list[Record]:
    if part == "all" or not reading.hold_out.strip():
        return [] if part == "held_out" else records
    tasks = sorted({record.task for record in records})
    held = held_out(tasks, reading.hold_out)
    return [record for record in records if (record.task in held) == (part == "held_out")]


def held_out(tasks: list[str], hold_out: str) -> set[str]:
    """The tasks that training leaves out. Raises ConfigError when a name or glob is that of none."""
    try:
        share = float(hold_out)
    except ValueError:
        found = set()
        for pattern in filter(None, (p.strip() for p in hold_out.split(","))):
            matched = fnmatch.filter(tasks, pattern)
            if not matched:
                raise ConfigError(f"data.hold_out: no task is called {pattern!r}{nearest(pattern, tasks)}") from None
            found.update(matched)
        return found
    if not 0 < share < 1:
        raise ConfigError(f"data.hold_out={hold_out!r}: expected names or globs of tasks, or a share between 0 and 1")
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
            found = [found[i] for i in np.random.default_rng((reading.seed, _hash(task))).permutation(len(found))]
        kept += found[: reading.cap]
    return [records[i] for i in sorted(kept)]


def _one_reference(records: list[Record], seed: int) -> list[Record]:
    return [
        dataclasses.replace(record, output=record.references[np.random.default_rng((seed, i)).integers(len(record.references))])
        if len(record.references) > 1
        else record
        for i, record in enumerate(records)
    ]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
