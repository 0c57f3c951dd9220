"""Convert messages of chat files to turns; refuse fields that are not supported."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm.data.records.examples import Turn

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
TRAINED = (
    "weight",
    "train",
    "training",
    "loss",
)  # 1 or true: the turn is trained; 0 or false: it is not trained
HIDDEN = ("mask", "masked")  # true: the turn is not trained
GIVEN = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "name",
    "tool_call_id",
)  # passed to the chat template
REFUSED = ("refusal", "audio", "image", "images", "video", "videos", "prefix", "train_detail")
KNOWN = {*TRAINED, *HIDDEN, *GIVEN, *REFUSED}
THINK = ("<think>", "</think>")  # what models write around their reasoning
ABSENT = (None, "", [], {})  # values of a field that count as absent


class BadRecord(Exception):
    """Reason why a record cannot be used, and what to do."""


def conversation(
    rows: Sequence[Any], role: str = "role", content: str = "content"
) -> tuple[Turn, ...]:
    """Turns up to the last trained one. Raises BadRecord. role, content: fields of a message."""
    turns = [_turn(number, row, role, content) for number, row in enumerate(rows, 1)]
    if not turns or turns[-1].role != "assistant":
        raise BadRecord(
            f"the conversation ends with {turns[-1].role if turns else 'nothing'}, expected the "
            "assistant's turn; cut it there"
        )
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip() and "tool_calls" not in turn.fields:
            raise BadRecord(
                f"turn {number}: the response is empty; remove the conversation, or set "
                "data.max_bad_share to leave such out"
            )
    if len(turns) == 1:
        raise BadRecord("there is nothing before the assistant's turn")
    trained = [i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
    if not trained:
        raise BadRecord(
            "no turn of the assistant is trained: each is marked with weight 0 or the like; "
            "remove the conversation"
        )
    return tuple(turns[: trained[-1] + 1])


def without_reasoning(text: str, opened: bool = False) -> tuple[str, str]:
    """Split an answer into (reasoning, answer); the reasoning is "" if there is none.

    opened: the prompt ends with <think>. If the reasoning does not end, the answer is "".
    """
    begin, end = THINK
    head, closed, answer = text.partition(end)
    reasoning = head.lstrip().removeprefix(begin)
    begun = opened or head.lstrip().startswith(begin)
    if not (closed or begun) or begin in reasoning:
        return "", text
    return reasoning.strip("\n"), answer.lstrip("\n")


def tools_of(row: Mapping) -> tuple[Mapping, ...]:
    """Tools of a record, in the form that transformers gives chat templates. Raises BadRecord."""
    found = []
    for name in ("tools", "functions"):
        tools = _parsed(row.get(name), f"field {name!r}")
        if tools in ABSENT:
            continue
        if not isinstance(tools, list):
            raise BadRecord(f"field {name!r} is {type(tools).__name__}, expected a list of tools")
        for tool in tools:
            function = tool.get("function", tool) if isinstance(tool, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise BadRecord(
                    f"field {name!r} holds {json.dumps(tool)[:60]}, expected {{'type': "
                    f"'function', 'function': {{'name': ...}}}}"
                )
            found.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tuple(found)


def unread_of(rows: Sequence[Any], role: str, content: str) -> set[str]:
    """Names of fields of messages that nothing reads."""
    known = KNOWN | {role, content}
    return {
        str(name)
        for row in rows
        if isinstance(row, dict)
        for name, value in row.items()
        if name not in known and value not in ABSENT
    }


def _turn(number: int, row: Any, role: str, content: str) -> Turn:
    where = f"turn {number}"
    if (
        not isinstance(row, dict)
        or role not in row
        or (content not in row and not {"tool_calls", "function_call"} & set(row))
    ):
        raise BadRecord(f"{where} has no {role!r} and {content!r}")
    if row[role] not in ROLES:
        raise BadRecord(f"{where} is of {row[role]!r}, expected one of {', '.join(ROLES)}")
    for name in REFUSED:
        if row.get(name) not in (*ABSENT, False):
            raise BadRecord(
                f"{where}: the field {name!r} cannot be obeyed; remove it, or the record"
            )
    kind = ROLES[row[role]]
    fields = {name: row[name] for name in GIVEN if row.get(name) not in ABSENT}
    said = row.get(content)
    if row[role] == "function_call":  # the text of the turn is the call
        fields["function_call"], said = _parsed(said, f"{where}: {content!r}"), None
    calls = _calls(fields, where)
    text = "" if said is None and calls else _said(said, where, content)
    return Turn(
        kind, text, _is_trained(row, kind, where), fields | ({"tool_calls": calls} if calls else {})
    )


def _said(said: Any, where: str, content: str) -> str:
    if isinstance(said, list):
        for part in said:
            kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise BadRecord(
                    f"{where}: {content!r} holds a part of type {kind!r}, expected texts; images "
                    "and sounds are not read"
                )
        return "".join(part["text"] for part in said)
    if not isinstance(said, str):
        raise BadRecord(f"{where}: {content!r} is {type(said).__name__}, expected a text")
    return said


def _is_trained(row: Mapping, kind: str, where: str) -> bool:
    """Whether a turn carries a loss. An assistant's does, unless a field says otherwise."""
    found = {}
    for name in (*TRAINED, *HIDDEN):
        value = row.get(name)
        if value is None:
            continue
        if (name in HIDDEN and not isinstance(value, bool)) or value not in (0, 1):
            wanted = "true or false" if name in HIDDEN else "0 or 1"
            raise BadRecord(
                f"{where}: {name!r} is {value!r}, expected {wanted}; a turn is trained as a "
                "whole or not at all"
            )
        found[name] = bool(value) != (name in HIDDEN)
    if len({*found.values()}) > 1:
        raise BadRecord(
            f"{where}: {' and '.join(map(repr, found))} contradict each other; keep one"
        )
    if kind != "assistant" and True in found.values():
        raise BadRecord(
            f"{where} is of the {kind}, and {next(iter(found))!r} asks to train it; only the "
            "assistant's turns are trained"
        )
    return not found or True in found.values()


def _calls(fields: dict[str, Any], where: str) -> list[dict]:
    """Pop the tool calls from `fields`, with arguments as objects, as chat templates expect."""
    calls = [*_list(fields.pop("tool_calls", []), f"{where}: 'tool_calls'")]
    if "function_call" in fields:
        calls += [{"type": "function", "function": fields.pop("function_call")}]
    found = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRecord(f"{where}: the tool call {json.dumps(call)[:60]} names no function")
        arguments = _parsed(
            function.get("arguments", {}), f"{where}: the arguments of {function['name']!r}"
        )
        if not isinstance(arguments, dict):
            raise BadRecord(
                f"{where}: the arguments of {function['name']!r} are {type(arguments).__name__}, "
                "expected an object"
            )
        function = function | {"arguments": arguments}
        found.append(call | {"function": function} if "function" in call else function)
    return found


def _list(value: Any, what: str) -> list:
    value = _parsed(value, what)
    if not isinstance(value, list):
        raise BadRecord(f"{what} is {type(value).__name__}, expected a list")
    return value


def _parsed(value: Any, what: str) -> Any:
    """Parse a value that may be a string of JSON."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise BadRecord(f"{what}: not JSON ({error})") from None
