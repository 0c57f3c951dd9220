"""Questions with answers, read from files, and what a memory finds for them."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from lm.data.records.turns import BadRecord


@dataclasses.dataclass(frozen=True)
class Asking:
    """A question and its answer. where: file and line."""

    question: str
    answer: str
    where: str


def asking(row: Mapping, where: str, question: str, answer: str) -> Asking:
    """Record of a row. question, answer: its fields.

    An answer is a text, a list of texts, or SQuAD's `answers`; the first is trained. Raises
    BadRecord.
    """
    for name in (question, answer):
        if name not in row:
            raise BadRecord(f"field {name!r} is missing; it has {', '.join(sorted(row))}")
    found = row[answer]
    if isinstance(found, Mapping):
        found = found.get("text")
    if isinstance(found, list):
        first = found[0] if found else ""
        found = first.get("text") if isinstance(first, Mapping) else first
    for name, text in ((question, row[question]), (answer, found)):
        if not isinstance(text, str) or not text.strip():
            raise BadRecord(f"field {name!r} is {text!r}: expected some text")
    assert isinstance(found, str)
    return Asking(row[question], " ".join(found.split()), where)


def code(*folders: str) -> str:
    """Hash of the source of some folders of this package, for the names of cached rows."""
    total = hashlib.sha256()
    for folder in folders:
        for file in sorted((Path(__file__).parents[1] / folder).glob("*.py")):
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()
