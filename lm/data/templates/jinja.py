"""Render a tokenizer's own chat template in transformers' sandbox.

The trained parts are found by rendering growing prefixes of the conversation. Rendering with
placeholders separates the template's text from the user's, so that control tokens in a user's text
stay text.
"""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.data.read.sources import DataError
from lm.data.records.examples import Record, Segment, Turn
from lm.data.records.turns import THINK
from lm.data.templates.chat import check_turns
from lm.data.templates.template import Asked, Template, as_turns
from lm.models.config import ConfigError

PLACE = re.compile("\ue000(\\d+)\ue001")  # placeholder in a private-use area, absent from texts
CLOCK = "strftime_now"  # function through which a template gets the date
AT = (  # prefix of a template: a macro that replaces the clock, since no function can be passed
    "{%- macro strftime_now(format) -%}{%- set said = namespace(text=format) -%}{%- for mark, "
    "value in openbook_day.items() -%}"
    "{%- set said.text = said.text.replace(mark, value) -%}{%- endfor -%}{{- said.text -}}{%- "
    "endmacro -%}"
)
MARKS = tuple(f"%{pad}{letter}" for letter in "aAwdbBmyYHIpMSfjUWcxXGuV" for pad in ("-", "")) + (
    "%%",
)
LINKS = (
    "tool_call_id",
    "name",
)  # fields of a tool's turn that a template may omit, since the order implies them

Pieces = list[tuple[str, bool]]  # (text, written by the template)
Render = Callable[..., str]  # (turns, prompt=False) -> text


def jinja(tokenizer, turns: str = "all", date: str = "") -> Template:
    """Template from the tokenizer's chat template.

    date: date that is given to the template, YYYY-MM-DD; "" = today, if the template asks for it.
    It is one of the options that are kept.
    Raises ConfigError when the tokenizer has no chat template, or one that fails or ends no answer
    with a control token.
    """
    trained = check_turns(turns) == "all"
    source = _source(tokenizer)
    date = (date or datetime.date.today().isoformat()) if CLOCK in source else ""
    specials = special_tokens(tokenizer)
    plain = functools.partial(_turns_rendered, tokenizer, date=date)
    stop = _stop(plain, specials)

    def ask(question: Record, _: int) -> Asked:
        messages = as_turns(question)
        render = functools.partial(plain, tools=question.tools)
        _check_tools(plain, render, question, specials)
        found: list[Segment] = []
        done = ""
        for i, turn in enumerate(messages):
            _check_fields(render, messages[: i + 1], specials)
            if turn.role == "assistant" and trained and turn.trained:
                found += _grown(render, messages[:i], done, specials)
                found += _answer(render, messages[: i + 1], stop, specials)
                done = "".join(segment.text for segment in found)
        found += _grown(render, messages, done, specials)

        def respond(answer: str | Turn) -> tuple[Segment, ...]:
            grown = (*messages, answer if isinstance(answer, Turn) else Turn("assistant", answer))
            _check_fields(render, grown, specials)
            return tuple(_answer(render, grown, stop, specials))

        return Asked(tuple(found), respond)

    return Template(
        "jinja",
        {"turns": turns, **({"date": date} if date else {})},
        stop,
        ask,
        source=source,
        fields=True,
    )


def special_tokens(tokenizer) -> re.Pattern:
    """Pattern that matches the text of every control token, longest first."""
    control = {
        *tokenizer.all_special_tokens,
        *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special),
    }
    return re.compile(
        "|".join(map(re.escape, sorted(filter(None, control), key=len, reverse=True))) or r"(?!)"
    )


def rendered(
    tokenizer,
    messages: Sequence[Mapping],
    *,
    prompt: bool = True,
    tools: Sequence[Mapping] = (),
    date: str = "",
    **more,
) -> str:
    """Render a conversation with the tokenizer's chat template.

    prompt: end where the next answer starts. date: used instead of today.
    more: arguments of transformers' apply_chat_template.
    Raises DataError for any error inside the template.
    """
    given: dict[str, Any] = {"tools": list(tools)} if tools else {}
    try:
        if date:
            day = datetime.datetime.fromisoformat(date)
            given |= {"chat_template": AT + tokenizer.get_chat_template(tools=given.get("tools"))}
            given["openbook_day"] = {mark: day.strftime(mark) for mark in MARKS}
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt, **given, **more
        )
    except Exception as error:  # a template is a program and may raise anything
        import jinja2

        said = (
            str(error)
            if isinstance(error, jinja2.TemplateError)
            else f"{type(error).__name__}: {error}"
        )
        raise DataError(f"the tokenizer's chat template refuses it: {said}") from None


def reads_reasoning(tokenizer) -> tuple[bool, bool]:
    """Return whether the chat template reads `reasoning_content`, and whether its prompt opens it.

    The second is whether the prompt for an answer ends with <think>.
    """
    mark = "\ue0000\ue001"
    asked = {"role": "user", "content": "a"}
    said = {"role": "assistant", "content": "b", "reasoning_content": mark}
    try:
        prompt = rendered(tokenizer, [asked])
        return mark in rendered(tokenizer, [asked, said], prompt=False), prompt.rstrip().endswith(
            THINK[0]
        )
    except DataError:  # no template, or one that refuses these turns
        return False, False


def _source(tokenizer) -> str:
    """Source of the template.

    Of several named templates transformers uses "tool_use" for tools, else "default".
    """
    found = tokenizer.chat_template
    if isinstance(found, dict) and "default" in found:
        return json.dumps(found, sort_keys=True)
    if isinstance(found, dict) and found:
        raise ConfigError(
            "task.template='jinja': the tokenizer's chat templates are called "
            f"{', '.join(sorted(found))}, and none is 'default'; rename "
            "the one to use, or keep it alone as chat_template.jinja"
        )
    if not isinstance(found, str):
        raise ConfigError(
            "task.template='jinja': the tokenizer has no chat template (chat_template); choose "
            "another template, such as 'chatml'"
        )
    return found


def _turns_rendered(
    tokenizer,
    turns: Sequence[Turn],
    prompt: bool = False,
    tools: Sequence[Mapping] = (),
    date: str = "",
) -> str:
    messages = [{"role": turn.role, "content": turn.text, **turn.fields} for turn in turns]
    return rendered(tokenizer, messages, prompt=prompt, tools=tools, date=date)


def _stop(render: Render, specials: re.Pattern) -> str:
    """Control token that ends an answer. Raises ConfigError when there is none."""
    try:
        text = render((Turn("user", "a"), Turn("assistant", "\ue0000\ue001")))
    except DataError as error:
        raise ConfigError(f"task.template='jinja': {error}") from None
    found = specials.search(text, text.find("\ue001") + 1)
    if found is None or "\ue001" not in text:
        raise ConfigError(
            "task.template='jinja': the tokenizer's chat template ends an answer with no control "
            "token, so none could be trained; choose "
            "another template, such as 'chatml'"
        )
    return found.group()


def _check_tools(plain: Render, render: Render, question: Record, specials: re.Pattern) -> None:
    """Raise DataError when the template omits the tools or they contain a control token."""
    if question.tools:
        _no_control(specials, question.tools, "the tools")
        messages = as_turns(question)
        if plain(messages, prompt=True) == render(messages, prompt=True):
            raise DataError(
                "the tokenizer's chat template leaves out 'tools'; choose a model whose template "
                "renders them, or remove them"
            )


def _check_fields(render: Render, messages: Sequence[Turn], specials: re.Pattern) -> None:
    """Raise DataError if the template omits a field of the last turn, or it has a control token."""
    turn = messages[-1]
    for name in turn.fields:
        _no_control(specials, turn.fields[name], f"turn {len(messages)}: {name!r}")
        if turn.role == "tool" and name in LINKS:
            continue
        without = dataclasses.replace(
            turn, fields={key: value for key, value in turn.fields.items() if key != name}
        )
        if render(messages) == render((*messages[:-1], without)):
            raise DataError(
                f"the tokenizer's chat template leaves out {name!r} of turn {len(messages)}; "
                "remove the field, or choose a template that "
                "renders it"
            )


def _no_control(specials: re.Pattern, value: Any, what: str) -> None:
    if spelled := specials.search(json.dumps(value, ensure_ascii=False)):
        raise DataError(f"{what} spells out the control token {spelled.group()!r}; remove it")


def _grown(
    render: Render, messages: Sequence[Turn], done: str, specials: re.Pattern
) -> list[Segment]:
    """Segments that the prompt for an answer to `messages` adds to the text `done`."""
    pieces = _pieces(render, messages, specials, prompt=True)
    reason = "the turns before it are rendered differently later"
    return [Segment(text, False, control) for text, control in _after(pieces, done, reason)]


def _answer(
    render: Render, messages: Sequence[Turn], stop: str, specials: re.Pattern
) -> list[Segment]:
    """Segments of the last turn, an assistant's; trained up to the control token that ends it."""
    prompt = "".join(text for text, _ in _pieces(render, messages[:-1], specials, prompt=True))
    ends = prompt.rstrip("\n").rpartition("\n")[2]
    reason = f"the prompt for an answer, which ends in {ends!r}, is not what its turn begins with"
    rest = _after(_pieces(render, messages, specials), prompt, reason)
    found: list[Segment] = []
    ended = False
    for text, control in rest:
        end = text.find(stop) if control and not ended else -1
        if end < 0:
            found.append(Segment(text, not ended, control))
            continue
        ended = True
        parts = ((text[:end], True), (stop, True), (text[end + len(stop) :], False))
        found += [Segment(part, trained, control) for part, trained in parts if part]
    if not ended:
        raise DataError(
            f"the tokenizer's chat template does not end this answer with {stop!r}, as it ends "
            "others"
        )
    return found


def _after(pieces: Pieces, done: str, reason: str) -> Pieces:
    if not "".join(text for text, _ in pieces).startswith(done):
        advice = (
            "use task.turns='last'"
            if "later" in reason
            else "begin each answer so, or give its reasoning as the template reads it"
        )
        raise DataError(
            "the tokenizer's chat template does not keep what is there when a conversation "
            f"grows ({reason}); {advice}"
        )
    left, found = len(done), []
    for text, control in pieces:
        if text[left:]:
            found.append((text[left:], control))
        left = max(0, left - len(text))
    return found


def _pieces(
    render: Render, messages: Sequence[Turn], specials: re.Pattern, prompt: bool = False
) -> Pieces:
    native = render(messages, prompt=prompt)
    try:
        places = [
            dataclasses.replace(turn, text=f"\ue000{i}\ue001" if turn.text else "")
            for i, turn in enumerate(messages)
        ]
        parts = PLACE.split(render(places, prompt=prompt))
    except DataError:
        parts = []
    for said in ([turn.text for turn in messages], [turn.text.strip() for turn in messages]):
        pieces = [
            (said[int(part)], False) if i % 2 else (part, True) for i, part in enumerate(parts)
        ]
        if "".join(text for text, _ in pieces) == native:
            return [(text, control) for text, control in pieces if text]
    for turn in messages:
        if spelled := specials.search(turn.text):
            raise DataError(
                f"a turn spells out the control token {spelled.group()!r}, and the tokenizer's "
                "chat template rewrites what is said"
            )
    return [(native, True)]
