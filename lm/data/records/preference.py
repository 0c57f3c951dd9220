"""Preference pairs: a prompt with a preferred and a rejected answer.

Rows of trl ({prompt, chosen, rejected} as texts or messages, the prompt given or shared by both
conversations), of UltraFeedback (a text as the prompt, and whole conversations with scores) and of
HH-RLHF (two transcripts of "Human:" and "Assistant:"). Judged answers are rows of trl too
({prompt, completion, label}), or pairs, which give two each.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lm.data.records.examples import Preference, Record, Turn
from lm.data.records.formats import FORMATS, context, preference, prepend
from lm.data.records.turns import BadRecord

SPEAKERS = re.compile(r"\n\n(Human|Assistant): ?")
ROLES = {"Human": "user", "Assistant": "assistant"}
ANSWERS = ("chosen", "rejected")


def pair(row: Mapping[str, Any], where: str) -> Preference:
    """Pair of a row. Raises BadRecord, also for equal answers and for scores that contradict it."""
    if not {*ANSWERS} <= set(row):
        raise BadRecord(
            f"expected the fields 'prompt', 'chosen' and 'rejected'; it has "
            f"{', '.join(map(repr, row)) or 'none'}"
        )
    _check_scores(row)
    before, tools = context(row)
    if tools:
        raise BadRecord("'tools' have no place in a preference pair; remove them, or the record")
    found = preference(_with_turns(row), where)
    if found.chosen.strip() == found.rejected.strip():
        raise BadRecord(
            f"'chosen' and 'rejected' are the same answer, {found.chosen[:40]!r}: nothing is "
            "preferred; remove the pair, or set data.max_bad_share to leave such out"
        )
    return dataclasses.replace(found, prompt=prepend(before, found.prompt))


@dataclasses.dataclass(frozen=True)
class Judged:
    """A prompt with one answer, which is desirable or not."""

    prompt: tuple[Turn, ...]
    answer: str
    desirable: bool
    source: str


def judged(row: Mapping[str, Any], where: str) -> list[Judged]:
    """Answer of a row {prompt, completion, label}, or both of a pair. Raises BadRecord."""
    if {*ANSWERS} <= set(row):
        found = pair(row, where)
        both = ((found.chosen, True), (found.rejected, False))
        return [Judged(found.prompt, answer, good, where) for answer, good in both]
    if missing := [name for name in ("prompt", "completion", "label") if name not in row]:
        raise BadRecord(
            f"no field {missing[0]!r}: expected 'prompt', 'completion' and 'label'; it has "
            f"{', '.join(map(repr, row)) or 'none'}"
        )
    label = row["label"]
    if not isinstance(label, bool | int) or label not in (0, 1):
        raise BadRecord(f"'label' is {label!r}: expected true for a desirable answer, or false")
    row = {name: value for name, value in row.items() if name != "label"}
    before, tools = context(row)
    if tools:
        raise BadRecord("'tools' have no place in a judged answer; remove them, or the record")
    (found,) = FORMATS["completion"](row)
    turns = found.turns or (Turn("user", found.instruction), Turn("assistant", found.output))
    if turns[-1].fields or not turns[-1].text.strip():
        raise BadRecord("'completion' ends with a turn that is not one text")
    return [Judged(prepend(before, turns[:-1]), turns[-1].text, bool(label), where)]


def mismatched(found: Sequence[Judged]) -> list[Preference]:
    """Each prompt with its own answer, and with the next other answer to another prompt.

    Raises BadRecord for a record without such an answer.
    """
    prompts, answers = [_said(one) for one in found], [one.answer.strip() for one in found]
    pairs = []
    for i, one in enumerate(found):
        later = (at % len(found) for at in range(i + 1, i + len(found)))
        other = lambda j, i=i: prompts[j] != prompts[i] and answers[j] != answers[i]
        j = next(filter(other, later), None)
        if j is None:
            raise BadRecord(
                f"{one.source}: no record of another prompt has another answer than "
                f"{one.answer[:40]!r}"
            )
        pairs.append(Preference(one.prompt, one.answer, found[j].answer, one.source))
    return pairs


def _said(one: Judged) -> tuple:
    return tuple((turn.role, turn.text) for turn in one.prompt)


def contradictory(found: Sequence[Judged]) -> list[Judged]:
    """Records whose prompt and answer are also in one with the other label."""
    key = lambda one: (_said(one), one.answer)
    labels: dict[Any, set[bool]] = {}
    for one in found:
        labels.setdefault(key(one), set()).add(one.desirable)
    return [one for one in found if len(labels[key(one)]) > 1]


def records(found: Preference) -> tuple[Record, Record]:
    """The chosen and the rejected answer, each as a record in which it alone is trained."""
    said = tuple(dataclasses.replace(turn, trained=False) for turn in found.prompt)

    def one(answer: str) -> Record:
        if len(said) == 1 and said[0].role == "user" and not said[0].fields:
            return Record(said[0].text, output=answer, source=found.source)
        return Record(turns=(*said, Turn("assistant", answer)), source=found.source)

    return one(found.chosen), one(found.rejected)


def _check_scores(row: Mapping[str, Any]) -> None:
    high, low = (row.get(f"score_{name}") for name in ANSWERS)
    if isinstance(high, int | float) and isinstance(low, int | float) and high < low:
        raise BadRecord(
            f"'score_chosen' is {high:g}, below 'score_rejected' {low:g}: exchange the "
            "answers, or remove the pair"
        )


def _with_turns(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row in a form that `preference` reads: transcripts and a text prompt become messages."""
    if isinstance(row["chosen"], list):
        prompt, first = row.get("prompt"), row["chosen"][:1]
        if isinstance(prompt, str) and first and first[0].get("role") == "assistant":
            return {**row, "prompt": [{"role": "user", "content": prompt}]}
        return row
    if row.get("prompt") is None and all(
        isinstance(row[name], str) and SPEAKERS.match(row[name]) for name in ANSWERS
    ):
        return {**row, "prompt": None} | {name: _transcript(row[name]) for name in ANSWERS}
    return row


def _transcript(text: str) -> list[dict[str, str]]:
    """Messages of "\\n\\nHuman: ...\\n\\nAssistant: ..." (Bai et al. 2022)."""
    _, *parts = SPEAKERS.split(text)
    return [
        {"role": ROLES[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
