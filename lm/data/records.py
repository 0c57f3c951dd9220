"""Records of instruct data, from files of every usual format. What cannot be used is named with its file and line, and counted."""

import collections
import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lm.data import files, sources, superni
from lm.data.examples import Preference, Record, Turn
from lm.data.sources import DataError
from lm.data.templates.template import whole_prompt
from lm.data.turns import ABSENT, ROLES, TRAINED, BadRecord, conversation, tools_of, unread_of
from lm.models.config import ConfigError, nearest

END = "<|endoftext|>"  # GPT-3's files end completions so; a template ends them itself
PARTS = ("train", "held_out", "holdout", "all")
NAMED = 3  # bad records or tasks named in a message
SHOWN = 12  # fields that nothing reads, the most frequent
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
AROUND = (
    "task", "system", "history", "tools", "functions", "parallel_tool_calls", "chat_template_kwargs", "mask", "label", "kto_tag",
    *TRAINED, *MEDIA,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reading:
    """format: of FORMATS, or "auto": by the first record of each file.   cap: most records of a task, 0 = all.

    hold_out: whole tasks kept out of training: names or globs, comma-separated, or a share such as "0.1", by a hash of the name.
    max_bad_share: share of bad records above which reading stops.   seed: of what is drawn.   holdout: share of the training records
    that is held out, chosen by their content.
    """

    format: str = "auto"
    cap: int = 0
    hold_out: str = ""
    max_bad_share: float = 0.0
    seed: int = 0
    holdout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Read:
    """bad: records left out.   warnings: one sentence each.   unread: fields that nothing reads, and how many records have them."""

    records: list[Record]
    bad: int = 0
    warnings: tuple[str, ...] = ()
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)


def find(patterns: str) -> tuple[list[str], list[str]]:
    """(files, warnings) of comma-separated files, globs, folders of records (or with tasks/ of them), lists of tasks (.txt)."""
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
    """The records of the files: those of training, of the tasks it leaves out ("held_out"), of the share ("holdout"), or "all".

    In training, `reading.cap` records of a task and one of the right answers are drawn from the seed; else they are the first.
    Raises DataError when there are none, or more bad ones than `reading.max_bad_share` says; ConfigError for a format that is unknown.
    """
    if reading.format != "auto" and reading.format not in FORMATS:
        raise ConfigError(
            f"data.format={reading.format!r} is unknown{nearest(reading.format, FORMATS)}; one of auto, {', '.join(FORMATS)}"
        )
    named, warnings = find(patterns)
    found: list[Record] = []
    bad: list[str] = []
    doubts: dict[str, list[str]] = collections.defaultdict(list)
    unread: collections.Counter[str] = collections.Counter()
    for file in named:
        for where, record in _records(file, reading.format, doubts, unread):
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
        raise DataError(
            f"{patterns} holds no record{'' if part == 'all' else f' of those that are {part} (data.hold_out, data.holdout_share)'}"
        )
    return Read(
        _one_reference(records, reading.seed) if part == "train" else records,
        len(bad),
        tuple(warnings),
        dict(unread.most_common(SHOWN)),
    )


def preferences(patterns: str) -> Iterator[Preference]:
    """The preference pairs of the files: {prompt, chosen, rejected}. Raises DataError, with file and line, for anything else."""
    for file in find(patterns)[0]:
        for where, row, problem in sources.rows(file):
            try:
                pair, (before, tools) = (
                    _preference(row, where),
                    _around(row) if isinstance(row, dict) else ((), ()),
                )
                if tools:
                    raise BadRecord(
                        "'tools' have no place in a preference pair; remove them, or the record"
                    )
                yield dataclasses.replace(pair, prompt=_after(before, pair.prompt))
            except BadRecord as reason:
                raise DataError(f"{where}: {problem or reason}") from None


def _records(
    file: str, format: str, doubts: dict[str, list[str]], unread: collections.Counter[str]
) -> Iterator[tuple[str, Record | str]]:
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
            unread.update(superni.unread(row))
            yield from superni.records(row, stem, file)
            continue
        try:
            if not isinstance(row, dict):
                raise BadRecord(f"it is {type(row).__name__}, expected an object")
            read = list(FORMATS[format](row))
            before, tools = _around(row)
            unread.update(_unread(row, format))
            for record in read:
                turns = (
                    _after(before, record.turns or _dialogue(record))
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


def detect(row: object, where: str) -> str:
    """The format of a file, by its first record. Raises DataError when it is none of FORMATS."""
    fields = set(row) if isinstance(row, dict) else set()
    for format, needed in _FIELDS.items():
        if needed <= fields:
            return format
    if {"chosen", "rejected"} <= fields:
        raise DataError(
            f"{where}: a preference pair has two responses; data.format='preference' trains on the chosen one"
        )
    if "text" in fields:
        raise DataError(
            f"{where}: a text has no response to train on; use the objective 'next_token', or give prompts with responses"
        )
    known = "; ".join(
        f"{format}: {', '.join(sorted(needed))}" for format, needed in _FIELDS.items()
    )
    has = (
        f"it has the fields {', '.join(map(repr, sorted(map(str, fields))))}"
        if fields
        else f"it is {type(row).__name__}"
    )
    raise DataError(f"{where}: the format is none of those known ({known}); {has}")


def counted(unread: Mapping[str, int]) -> dict[str, int]:
    """`Read.unread` as counts of packed rows."""
    return {f"records with the unread field {name!r}": number for name, number in unread.items()}


def _alpaca(row: Mapping) -> Iterator[Record]:
    yield Record(
        _text(row, "instruction"),
        _text(row, "input", ""),
        _response(row, "output"),
        task=_text(row, "task", ""),
    )


def _self_instruct(row: Mapping) -> Iterator[Record]:
    instruction, instances = _text(row, "instruction"), row.get("instances")
    if not isinstance(instances, list) or not instances:
        raise BadRecord("'instances' is not a list with an instance in it")
    for instance in instances:
        if not isinstance(instance, dict):
            raise BadRecord(f"an instance is {type(instance).__name__}, expected an object")
        yield Record(
            instruction,
            _text(instance, "input", ""),
            _response(instance, "output"),
            task=_text(row, "name", ""),
        )


def _completion(row: Mapping) -> Iterator[Record]:
    task = _text(row, "task", "")
    if isinstance(row["prompt"], list):
        yield Record(turns=conversation([*row["prompt"], *_listed(row, "completion")]), task=task)
        return
    prompt = _text(row, "prompt")
    if not prompt:
        raise BadRecord("'prompt' is empty; there is nothing to answer")
    completion = _response({"completion": _text(row, "completion").removesuffix(END)}, "completion")
    yield Record(prompt, output=completion, task=task)


def _messages(row: Mapping) -> Iterator[Record]:
    yield Record(turns=conversation(_listed(row, "messages")), task=_text(row, "task", ""))


def _sharegpt(row: Mapping) -> Iterator[Record]:
    yield Record(
        turns=conversation(_listed(row, "conversations"), "from", "value"),
        task=_text(row, "task", ""),
    )


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
_READ = {
    **_FIELDS, "self_instruct": {"name", "instruction", "instances"}, "alpaca": {"instruction", "input", "output"},
    "preference": {"prompt", "chosen", "rejected"},
}  # fmt: skip


def _around(row: Mapping) -> tuple[tuple[Turn, ...], tuple[Mapping, ...]]:
    """(the turns that `system` and `history` put before a record, its tools). Raises BadRecord for a field that cannot be obeyed."""
    for name in (*MEDIA, "chat_template_kwargs"):
        if row.get(name) not in ABSENT:
            raise BadRecord(
                f"the field {name!r} cannot be obeyed: only text is read, as the template spells it; remove it, or the record"
            )
    for name in (*TRAINED, "label", "kto_tag"):
        if row.get(name) is not None and row[name] not in (1, *([] if name in TRAINED else [""])):
            raise BadRecord(
                f"the field {name!r} is {row[name]!r}: a record is learned as it is or not at all; remove it, or the record"
            )
    if (mask := row.get("mask")) not in (*ABSENT, False) and ROLES.get(str(mask).lower()) != "user":
        raise BadRecord(
            f"the field 'mask' is {mask!r}: what users say is never trained, and nothing else can be hidden so; mark the turns"
        )
    tools = tools_of(row)
    if row.get("parallel_tool_calls") is False and any(
        len(turn.get("tool_calls") or ()) > 1 for turn in row.get("messages", ())
    ):
        raise BadRecord("'parallel_tool_calls' is false, and a turn makes several calls")
    turns = [Turn("system", system)] if (system := _text(row, "system", "")) else []
    for pair in row.get("history") or ():
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(said, str) for said in pair)
        ):
            raise BadRecord("'history' is no list of [what the user said, the answer]")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return tuple(turns), tools


def _after(before: tuple[Turn, ...], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    if before and turns[0].role == "system":
        raise BadRecord(
            "there is a turn of the system, and 'system' or 'history' before it; keep one"
        )
    return (*before, *turns)


def _dialogue(record: Record) -> tuple[Turn, ...]:
    return Turn("user", whole_prompt(record)), Turn("assistant", record.output)


def _unread(row: Mapping, format: str) -> set[str]:
    """The names of a record's fields that nothing reads, those of messages and instances too."""
    found = {
        str(name)
        for name in row
        if name not in _READ[format] and name not in AROUND and row[name] not in ABSENT
    }
    names = ("from", "value") if format == "sharegpt" else ("role", "content")
    for field in _READ[format] & {
        "messages",
        "conversations",
        "prompt",
        "completion",
        "chosen",
        "rejected",
    }:
        if isinstance(row.get(field), list):
            found |= {f"{field}[].{name}" for name in unread_of(row[field], *names)}
    if format == "self_instruct" and isinstance(row.get("instances"), list):
        every = [instance for instance in row["instances"] if isinstance(instance, dict)]
        found |= {
            f"instances[].{name}"
            for instance in every
            for name in instance
            if name not in ("input", "output")
        }
    return found


def _preference(row: Any, where: str) -> Preference:
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= set(row):
        raise BadRecord("expected the fields 'prompt', 'chosen' and 'rejected'")
    if isinstance(row["chosen"], list):
        given = row["prompt"] if isinstance(row.get("prompt"), list) else []
        chosen, rejected = (
            conversation([*given, *_listed(row, name)]) for name in ("chosen", "rejected")
        )
        if chosen[:-1] != rejected[:-1]:
            raise BadRecord("'chosen' and 'rejected' answer different prompts")
        for name, turns in (("chosen", chosen), ("rejected", rejected)):
            if len(turns) < len(given) + len(row[name]) or turns[-1].fields:
                raise BadRecord(
                    f"{name!r} ends with a turn that has more than a text, or is not trained: a pair compares two texts"
                )
        return Preference(chosen[:-1], chosen[-1].text, rejected[-1].text, where)
    return Preference(
        (Turn("user", _text(row, "prompt")),),
        _response(row, "chosen"),
        _response(row, "rejected"),
        where,
    )


def _text(row: Mapping, name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None and default is not None:
        return default
    if name not in row and default is None:
        raise BadRecord(f"no field {name!r}; it has {', '.join(map(repr, row))}")
    if not isinstance(value, str):
        raise BadRecord(f"field {name!r} is {type(value).__name__}, expected a text")
    return value


def _response(row: Mapping, name: str) -> str:
    text = _text(row, name)
    if not text.strip():
        raise BadRecord(
            f"the response {name!r} is empty; remove the record, or set data.max_bad_share to leave such records out"
        )
    return text


def _listed(row: Mapping, name: str) -> list:
    if not isinstance(row.get(name), list):
        raise BadRecord(
            f"field {name!r} is {type(row.get(name)).__name__}, expected a list of turns"
        )
    return row[name]


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
    """The tasks that training leaves out. Raises ConfigError when a name or glob is that of none."""
    try:
        share = float(hold_out)
    except ValueError:
        found = set()
        for pattern in filter(None, (p.strip() for p in hold_out.split(","))):
            matched = fnmatch.filter(tasks, pattern)
            if not matched:
                raise ConfigError(
                    f"data.hold_out: no task is called {pattern!r}{nearest(pattern, tasks)}"
                ) from None
            found.update(matched)
        return found
    if not 0 < share < 1:
        raise ConfigError(
            f"data.hold_out={hold_out!r}: expected names or globs of tasks, or a share between 0 and 1"
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
