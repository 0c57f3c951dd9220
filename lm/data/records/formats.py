"""Formats of instruct data: how the fields of a row become records."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lm.data.read.sources import DataError
from lm.data.records.examples import Preference, Record, Turn
from lm.data.records.turns import (
    ABSENT,
    ROLES,
    TRAINED,
    BadRecord,
    conversation,
    tools_of,
    unread_of,
)
from lm.data.templates.template import whole_prompt

END = "<|endoftext|>"  # GPT-3's completions end with it; a template adds its own end
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
AROUND = (
    "task",
    "system",
    "history",
    "tools",
    "functions",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "mask",
    "label",
    "kto_tag",
    *TRAINED,
    *MEDIA,
)


def detect(row: object, where: str) -> str:
    """Format of a file, judged by its first record. Raises DataError if it is none of FORMATS."""
    fields = set(row) if isinstance(row, dict) else set()
    for format, needed in _FIELDS.items():
        if needed <= fields:
            return format
    if {"chosen", "rejected"} <= fields:
        raise DataError(
            f"{where}: a preference pair has two responses; task.format='preference' trains on "
            "the chosen one"
        )
    if "text" in fields:
        raise DataError(
            f"{where}: a text has no response to train on; use the task 'next_token', or "
            "give prompts with responses"
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
    """Preferred answer, for supervised training before DPO (Rafailov et al. 2023, section 4)."""
    pair = preference(row, "")
    yield Record(turns=(*pair.prompt, Turn("assistant", pair.chosen)), task=_text(row, "task", ""))


FORMATS: dict[str, Callable[[Mapping], Iterator[Record]]] = {
    "superni": lambda row: iter(()),  # read a file at a time by lm/data/records/superni.py
    "self_instruct": _self_instruct,
    "alpaca": _alpaca,
    "completion": _completion,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "preference": _chosen,
}
_FIELDS = {
    "superni": {"Definition", "Instances"},
    "self_instruct": {"instruction", "instances"},
    "alpaca": {"instruction", "output"},
    "completion": {"prompt", "completion"},
    "messages": {"messages"},
    "sharegpt": {"conversations"},
}
_READ = {
    **_FIELDS,
    "self_instruct": {"name", "instruction", "instances"},
    "alpaca": {"instruction", "input", "output"},
    "preference": {"prompt", "chosen", "rejected"},
}


def context(row: Mapping) -> tuple[tuple[Turn, ...], tuple[Mapping, ...]]:
    """(turns of `system` and `history`, which precede a record; its tools).

    Raises BadRecord for a field that is not supported.
    """
    for name in (*MEDIA, "chat_template_kwargs"):
        if row.get(name) not in ABSENT:
            raise BadRecord(
                f"the field {name!r} cannot be obeyed: only text is read, as the template spells "
                "it; remove it, or the record"
            )
    for name in (*TRAINED, "label", "kto_tag"):
        if row.get(name) is not None and row[name] not in (1, *([] if name in TRAINED else [""])):
            raise BadRecord(
                f"the field {name!r} is {row[name]!r}: a record is learned as it is or not at "
                "all; remove it, or the record"
            )
    if (mask := row.get("mask")) not in (*ABSENT, False) and ROLES.get(str(mask).lower()) != "user":
        raise BadRecord(
            f"the field 'mask' is {mask!r}: what users say is never trained, and nothing else "
            "can be hidden so; mark the turns"
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


def prepend(before: tuple[Turn, ...], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    if before and turns[0].role == "system":
        raise BadRecord(
            "there is a turn of the system, and 'system' or 'history' before it; keep one"
        )
    return (*before, *turns)


def dialogue(record: Record) -> tuple[Turn, ...]:
    return Turn("user", whole_prompt(record)), Turn("assistant", record.output)


def unread_fields(row: Mapping, format: str) -> set[str]:
    """Names of a record's fields that nothing reads, including fields of messages and instances."""
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


def preference(row: Any, where: str) -> Preference:
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
                    f"{name!r} ends with a turn that has more than a text, or is not trained: a "
                    "pair compares two texts"
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
            f"the response {name!r} is empty; remove the record, or set data.max_bad_share to "
            "leave such records out"
        )
    return text


def _listed(row: Mapping, name: str) -> list:
    if not isinstance(row.get(name), list):
        raise BadRecord(
            f"field {name!r} is {type(row.get(name)).__name__}, expected a list of turns"
        )
    return row[name]
