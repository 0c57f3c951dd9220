"""Prompts: passages before a question, as data (In-Context RALM, Ram et al. 2023).

Text from a memory is data. Each passage is put on one line, so that it cannot pass for another
passage or for the question. It is tokenised without special tokens and with the chat template's
markers broken, so that it cannot end the user's turn.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from lm.data.encode.encoding import affixes
from lm.data.read.sources import DataError
from lm.data.templates.jinja import rendered
from retrieval.errors import RetrievalError
from retrieval.passages import Hit
from retrieval.sanitising import encode_foreign, encode_plain, one_line, one_of

INSTRUCTION = "Answer the question in a few words."
MAX_PASSAGE_TOKENS = 192  # a small reader loses track in longer passages
MIN_PASSAGE_TOKENS = 16  # a passage that would be cut to less is left out
CONTENT = "openbook content goes here"  # placeholder for the user's turn in the chat template
EARLIER = "openbook turn {} goes here"  # placeholder for the text of an earlier turn
EARLIER_AT = re.compile(EARLIER.format(r"(\d+)"))
BRACKETED = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and the hits in it.

    shown: best first; hits that did not fit are left out. cut: tokens of those shown that did not
    fit.
    """

    tokens: list[int]
    shown: tuple[Hit, ...]
    cut: int = 0


def build_prompt(
    tokenizer,
    question: str,
    hits: Sequence[Hit],
    max_tokens: int,
    turns: Sequence[Mapping[str, str]] = (),
    encoder: bool = False,
    instruction: str = INSTRUCTION,
) -> Prompt:
    """Build numbered passages and the question as one user turn.

    The tokenizer's chat template is used, or plain text without one. With several passages the
    question comes before them too: a small reader then confuses them far less (query-aware
    contextualisation, Liu et al. 2024, Lost in the Middle, section 4.2). Each passage is cut to 192
    tokens. If the prompt exceeds `max_tokens`, the last passages are left out, and the first is
    cut.
    turns: earlier messages for the chat template, ignored without one. They are data, as passages.
    encoder: an encoder reads the prompt, so that it ends as the tokenizer ends a text.
    Raises RetrievalError when the prompt without passages is too long.
    """
    if not isinstance(question, str) or not question.strip():
        raise RetrievalError(f"the question is {question!r}: expected some text")
    plain, line = (
        functools.partial(encode_plain, tokenizer),
        functools.partial(_line, tokenizer, markers(tokenizer)),
    )
    asked = f"Question: {one_line(question)}"
    for count in range(len(hits), 0, -1):
        before, after = _frame(tokenizer, turns=turns, encoder=encoder)
        head = plain(f"{instruction} Use these facts:\n" + (f"{asked}\n" if count > 1 else ""))
        tail = plain(asked + _cue(tokenizer))
        room = max_tokens - len(before) - len(head) - len(tail) - len(after)
        lines = [
            line(number, hit, MAX_PASSAGE_TOKENS)
            for number, hit in enumerate(hits[:count], start=1)
        ]
        if count == 1 and len(lines[0][0]) > room >= MIN_PASSAGE_TOKENS:
            lines[0] = line(1, hits[0], room)
        if sum(len(tokens) for tokens, _ in lines) <= room:
            return Prompt(
                [*before, *head, *(token for line, _ in lines for token in line), *tail, *after],
                tuple(hits[:count]),
                sum(cut for _, cut in lines),
            )
    before, after = _frame(tokenizer, instruction, turns, encoder)
    tokens = [*before, *plain(asked + _cue(tokenizer)), *after]
    if len(tokens) > max_tokens:
        raise RetrievalError(
            f"the question {one_line(question)[:40]!r}... makes a prompt of {len(tokens):,} "
            f"tokens; the reader can take {max_tokens:,}: ask a shorter one"
        )
    return Prompt(tokens, ())


def _line(
    tokenizer, markers: re.Pattern, number: int, hit: Hit, max_tokens: int
) -> tuple[list[int], int]:
    """Return one passage as a line of at most `max_tokens` tokens, and the tokens cut from it."""
    head, end = encode_plain(tokenizer, f"[{number}]"), encode_plain(tokenizer, "\n")
    title = f" {one_line(hit.title)}:" if hit.title and not hit.text.startswith(hit.title) else ""
    text, room = f"{title} {one_line(hit.text)}", max_tokens - len(head) - len(end)
    cut = max(0, len(encode_plain(tokenizer, text)) - room)
    return [*head, *encode_foreign(tokenizer, text, markers, room), *end], cut


def _cue(tokenizer) -> str:
    return "" if tokenizer.chat_template else "\nAnswer:"


def _frame(
    tokenizer,
    instruction: str = "",
    turns: Sequence[Mapping[str, str]] = (),
    encoder: bool = False,
) -> tuple[list[int], list[int]]:
    """Return the tokens before and after the user's text.

    They come from the chat template with the earlier turns; without a template, they are a start
    token, if there is one, and for an encoder what the tokenizer puts after a text.
    instruction: the system message, or the first line of the user's turn if `turns` have a system
    message or the template has no system role.
    """
    if not tokenizer.chat_template:
        start, end = affixes(tokenizer)
        if not start and not encoder and tokenizer.bos_token_id is not None:
            start = [tokenizer.bos_token_id]
        said = encode_plain(tokenizer, instruction + "\n") if instruction else []
        return [*start, *said], end if encoder else []
    earlier: list[str] = []
    text = _rendered(tokenizer, instruction, [_placed(turn, earlier) for turn in turns])
    if text.count(CONTENT) != 1:
        raise RetrievalError(
            "the tokenizer's chat template does not show a user's message exactly once: give the "
            "reader another template"
        )
    before, after = text.split(CONTENT)
    known = markers(tokenizer) if earlier else one_of(())
    found: list[int] = []
    for i, part in enumerate(EARLIER_AT.split(before)):
        found += (
            _lines(tokenizer, earlier[int(part)], known)
            if i % 2
            else tokenizer(part, add_special_tokens=False)["input_ids"]
        )
    return found, tokenizer(after, add_special_tokens=False)["input_ids"]


def _placed(turn: Mapping[str, str], said: list[str]) -> dict[str, str]:
    """Return the message with placeholders for its texts, which are appended to `said`."""
    placed = {"role": turn["role"]}
    for name in ("content", "reasoning_content"):
        if name in turn:
            placed[name] = EARLIER.format(len(said)) if turn[name] else ""
            said += [turn[name]] * bool(turn[name])
    return placed


def _lines(tokenizer, text: str, markers: re.Pattern) -> list[int]:
    """Encode the text of an earlier turn as data: an answer may repeat a passage."""
    found: list[int] = []
    for i, line in enumerate(text.splitlines()):
        found += encode_plain(tokenizer, "\n") if i else []
        found += encode_foreign(tokenizer, line, markers, len(line.encode()) + 1)
    return found


def _rendered(tokenizer, instruction: str, turns: Sequence[Mapping[str, str]] = ()) -> str:
    render = functools.partial(rendered, tokenizer)
    system, user = {"role": "system", "content": instruction}, {"role": "user", "content": CONTENT}
    first = user | {"content": f"{instruction}\n{CONTENT}"} if instruction else user
    if turns and turns[0]["role"] == "system":
        return render([*turns, first])
    try:
        return render([*[system] * bool(instruction), *turns, user])
    except DataError:
        return render([*turns, first])


def markers(tokenizer) -> re.Pattern:
    """Compile what the chat template writes around messages: [/INST], <|user|>, ASSISTANT:.

    Some tokenizers treat such markers as plain text.
    """
    if not tokenizer.chat_template:
        return one_of(())
    text = _rendered(tokenizer, INSTRUCTION)
    # The words before each message and before the answer.
    last = [part.split()[-1:] for part in re.split(f"{INSTRUCTION}|{CONTENT}", text)]
    return one_of(
        {
            *BRACKETED.findall(text),
            *(word for words in last for word in words if word.endswith(":")),
        }
    )


def before_text(
    tokenizer, hits: Sequence[Hit], max_tokens: int
) -> tuple[list[int], tuple[Hit, ...], int]:
    """Passages as lines before a text: (tokens, passages shown, tokens cut from these).

    Each is cut to 192 tokens, and the last to what is left of `max_tokens`.
    """
    known, end = markers(tokenizer), encode_plain(tokenizer, "\n")
    tokens: list[int] = []
    shown: list[Hit] = []
    cut = 0
    for hit in hits:
        room = min(MAX_PASSAGE_TOKENS, max_tokens - len(tokens)) - len(end)
        if room < MIN_PASSAGE_TOKENS:
            break
        title = f"{one_line(hit.title)}: " if hit.title else ""
        text = title * (not hit.text.startswith(hit.title)) + one_line(hit.text)
        cut += max(0, len(encode_plain(tokenizer, text)) - room)
        tokens += [*encode_foreign(tokenizer, text, known, room), *end]
        shown.append(hit)
    return tokens, tuple(shown), cut
