"""Chat formats: ChatML, Tulu, Llama 2 and Llama 3.

An assistant's text is trained, including the token that ends its turn.
"""

import dataclasses
from collections.abc import Callable, Mapping

from lm.data.read.sources import DataError
from lm.data.records.examples import Record, Segment, Turn
from lm.data.templates.template import Asked, Template, answered, as_turns
from lm.models.config import ConfigError

TURNS = ("all", "last")  # which assistant turns are trained


@dataclasses.dataclass(frozen=True)
class Format:
    """Layout of a chat.

    start: text before the first turn. header: text before an assistant's turn.
    around: role -> text before and after its message; other roles are not supported.
    before, after: text around an assistant's message, trained with it.
    stop: token that ends an assistant's turn. tail: text after it.
    strip: remove spaces around messages.
    """

    stop: str
    around: Mapping[str, tuple[str, str]]
    header: str = ""
    start: str = ""
    before: str = ""
    after: str = ""
    tail: str = ""
    strip: bool = False


def chatml(tokenizer, turns: str = "all") -> Template:
    """OpenAI's ChatML: <|im_start|>ROLE, a newline, the message, <|im_end|>."""
    roles = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "tool")}
    return _template(
        "chatml", Format("<|im_end|>", roles, header="<|im_start|>assistant\n", tail="\n"), turns
    )


def tulu(tokenizer, turns: str = "all") -> Template:
    """Tulu (Wang et al. 2023, arXiv 2306.04751, figure 1).

    <|user|> and <|assistant|> are plain text; the end-of-text token ends a turn.
    """
    roles = {role: (f"<|{role}|>\n", "\n") for role in ("system", "user")}
    return _template(
        "tulu", Format(tokenizer.eos_token, roles, header="<|assistant|>\n", tail="\n"), turns
    )


def llama2(tokenizer, turns: str = "all") -> Template:
    """Llama 2 (Touvron et al. 2023, arXiv 2307.09288): [INST] ... [/INST].

    A system message is inside the first [INST]. Each pair of turns has a start token.
    """
    start = tokenizer.bos_token or ""
    style = Format(
        tokenizer.eos_token,
        {"user": (f"{start}[INST] ", " [/INST]")},
        before=" ",
        after=" ",
        strip=True,
    )
    return _template("llama2", style, turns, _system_in_the_first)


def llama3(tokenizer, turns: str = "all") -> Template:
    """Llama 3 (Dubey et al. 2024, arXiv 2407.21783): header, empty line, message, <|eot_id|>."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    roles = {role: (header.format(role), "<|eot_id|>") for role in ("system", "user")} | {
        "tool": (header.format("ipython"), "<|eot_id|>")
    }
    style = Format(
        "<|eot_id|>",
        roles,
        header=header.format("assistant"),
        start=tokenizer.bos_token or "",
        strip=True,
    )
    return _template("llama3", style, turns)


def check_turns(turns: str) -> str:
    """Raise ConfigError unless it is one of TURNS."""
    if turns not in TURNS:
        raise ConfigError(f"task.turns={turns!r}: expected one of {', '.join(map(repr, TURNS))}")
    return turns


def _template(
    name: str, style: Format, turns: str, arrange: Callable[[tuple[Turn, ...]], list[Turn]] = list
) -> Template:
    trained = check_turns(turns) == "all"
    respond = answered(style.stop, style.before, style.after, style.tail)

    def answer(text: str) -> tuple[Segment, ...]:
        return respond(text.strip() if style.strip else text)

    def ask(question: Record, _: int) -> Asked:
        found = [Segment(style.start, False, control=True)]
        for turn in arrange(as_turns(question)):
            if turn.role == "assistant":
                said = answer(turn.text)
                found += [
                    Segment(style.header, False, control=True),
                    *(
                        dataclasses.replace(s, trained=s.trained and trained and turn.trained)
                        for s in said
                    ),
                ]
                continue
            if turn.role not in style.around:
                raise DataError(
                    f"it has no place for a turn of {turn.role!r}; it knows "
                    f"{', '.join((*style.around, 'assistant'))}"
                )
            before, after = style.around[turn.role]
            said = turn.text.strip() if style.strip else turn.text
            found += [
                Segment(before, False, control=True),
                Segment(said, False),
                Segment(after, False, control=True),
            ]
        found.append(Segment(style.header, False, control=True))
        return Asked(tuple(segment for segment in found if segment.text), answer)

    return Template(name, {"turns": turns}, style.stop, ask)


def _system_in_the_first(turns: tuple[Turn, ...]) -> list[Turn]:
    system, rest = (
        ("", list(turns)) if turns[0].role != "system" else (turns[0].text, list(turns[1:]))
    )
    for i, turn in enumerate(rest):
        if turn.role != ("user", "assistant")[i % 2]:
            raise DataError(
                f"users and assistants must take turns, and turn {i + 1} is one of {turn.role!r}"
            )
    if not rest:
        raise DataError("there is no user's message")
    if system:
        rest[0] = Turn("user", f"<<SYS>>\n{system}\n<</SYS>>\n\n{rest[0].text}")
    return rest
