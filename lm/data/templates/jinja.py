"""A tokenizer's own chat template, rendered by transformers in its sandbox, with the losses found by growing the conversation.

Which part of the text is the template's and which the conversation's is found by rendering it with placeholders, so that control tokens
spelled out in what a user says stay text.
"""

import re

from lm.data.examples import Record, Segment, Turn
from lm.data.sources import DataError
from lm.data.templates.chat import check_turns
from lm.data.templates.template import Asked, Template, as_turns
from lm.models.config import ConfigError

PLACE = re.compile("\ue000(\\d+)\ue001")  # of a private-use area: no text holds it

Pieces = list[tuple[str, bool]]  # text, and whether it is the template's


def jinja(tokenizer, turns: str = "all") -> Template:
    """Raises ConfigError when the tokenizer has no chat template, or one that ends no answer with a control token."""
    trained = check_turns(turns) == "all"
    if not isinstance(tokenizer.chat_template, str):
        raise ConfigError(
            "data.template='jinja': the tokenizer has no chat template (chat_template); choose another template, such as 'chatml'"
        )
    specials = special_tokens(tokenizer)

    def ask(question: Record, _: int) -> Asked:
        messages = as_turns(question)
        found: list[Segment] = []
        done = ""
        for i, turn in enumerate(messages):
            if turn.role == "assistant" and trained:
                found += _grown(tokenizer, messages[:i], done)
                found += _answer(tokenizer, messages[: i + 1], specials)
                done = "".join(segment.text for segment in found)
        found += _grown(tokenizer, messages, done)
        return Asked(tuple(found), lambda answer: tuple(_answer(tokenizer, (*messages, Turn("assistant", answer)), specials)))

    probe = _answer(tokenizer, (Turn("user", "a"), Turn("assistant", "b")), specials)
    stop = next(segment.text for segment in reversed(probe) if segment.trained)
    stop = specials.findall(stop)[-1]
    return Template("jinja", {"turns": turns}, stop, ask, source=tokenizer.chat_template)


def special_tokens(tokenizer) -> re.Pattern:
    """Matches every control token's text, the longest first."""
    control = {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
    return re.compile("|".join(map(re.escape, sorted(filter(None, control), key=len, reverse=True))) or r"(?!)")


def _grown(tokenizer, messages: tuple[Turn, ...], done: str) -> list[Segment]:
    """What the prompt for an answer to `messages` adds to the text that is there already."""
    pieces = _pieces(tokenizer, messages, prompt=True)
    return [Segment(text, False, control) for text, control in _after(pieces, done, "the turns before it are rendered differently later")]


def _answer(tokenizer, messages: tuple[Turn, ...], specials: re.Pattern) -> list[Segment]:
    """The segments of the last turn, an assistant's: trained up to its first control token."""
    prompt = "".join(text for text, _ in _pieces(tokenizer, messages[:-1], prompt=True))
    rest = _after(_pieces(tokenizer, messages), prompt, "the prompt for an answer is not what its turn begins with")
    found: list[Segment] = []
    ended = False
    for text, control in rest:
        end = specials.search(text) if control and not ended else None
        if end is None:
            found.append(Segment(text, not ended, control))
            continue
        ended = True
        parts = ((text[: end.start()], True), (end.group(), True), (text[end.end() :], False))
        found += [Segment(part, trained, control) for part, trained in parts if part]
    if not ended:
        raise ConfigError(
            "data.template='jinja': the tokenizer's chat template ends an answer with no control token, so none could be trained; choose "
            "another template, such as 'chatml'"
        )
    return found


def _after(pieces: Pieces, done: str, reason: str) -> Pieces:
    if not "".join(text for text, _ in pieces).startswith(done):
        raise DataError(
            f"the tokenizer's chat template does not keep what is there when a conversation grows ({reason}); use data.turns='last'"
        )
    left, found = len(done), []
    for text, control in pieces:
        if text[left:]:
            found.append((text[left:], control))
        left = max(0, left - len(text))
    return found


def _pieces(tokenizer, messages: tuple[Turn, ...], prompt: bool = False) -> Pieces:
    native = _render(tokenizer, [(turn.role, turn.text) for turn in messages], prompt)
    try:
        parts = PLACE.split(_render(tokenizer, [(turn.role, f"\ue000{i}\ue001") for i, turn in enumerate(messages)], prompt))
    except DataError:
        parts = []
    for said in ([turn.text for turn in messages], [turn.text.strip() for turn in messages]):
        pieces = [(said[int(part)], False) if i % 2 else (part, True) for i, part in enumerate(parts)]
        if "".join(text for text, _ in pieces) == native:
            return [(text, control) for text, control in pieces if text]
    specials = special_tokens(tokenizer)
    for turn in messages:
        if spelled := specials.search(turn.text):
            raise DataError(
                f"a turn spells out the control token {spelled.group()!r}, and the tokenizer's chat template rewrites what is said"
            )
    return [(native, True)]


def _render(tokenizer, messages: list[tuple[str, str]], prompt: bool) -> str:
    import jinja2

    try:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], tokenize=False, add_generation_prompt=prompt
        )  # fmt: skip
    except jinja2.TemplateError as error:
        raise DataError(f"the tokenizer's chat template refuses it: {error}") from None
