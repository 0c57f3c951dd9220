"""Preference pairs: a prompt with a preferred and a rejected answer.

Rows of trl ({prompt, chosen, rejected} as texts or messages, the prompt given or shared by both
conversations), of UltraFeedback (a text as the prompt, and whole conversations with scores) and of
HH-RLHF (two transcripts of "Human:" and "Assistant:").
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from lm.data.records.examples import Preference, Record, Turn
from lm.data.records.formats import context, preference, prepend
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
