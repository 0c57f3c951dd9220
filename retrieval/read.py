"""Passages from files: .jsonl rows and .txt paragraphs."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from retrieval.errors import RetrievalError
from retrieval.passages import Passage, check_passages

FIELDS = ("id", "text", "title", "source", "metadata")


def read_passages(paths: Sequence) -> list[Passage]:
    """The passages of all files, checked. A row or paragraph without an id is named `<file name>:<number>`.

    Raises RetrievalError naming file and line for a file that is missing, empty, of another kind or not UTF-8, and for a bad row.
    """
    passages = []
    for path in map(Path, paths):
        if path.suffix not in READERS:
            raise RetrievalError(f"{path}: expected a file ending in {' or '.join(READERS)}")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise RetrievalError(f"{path} does not exist: give the path of a .jsonl or .txt file") from None
        except UnicodeDecodeError as error:
            raise RetrievalError(f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv") from None
        found = list(READERS[path.suffix](path, text))
        if not found:
            raise RetrievalError(f"{path} holds no passages: expected at least one")
        passages += found
    return check_passages(passages)


def _rows(path: Path, text: str) -> Iterator[Passage]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RetrievalError(f"{path} line {number} is not JSON ({error.msg}): expected one object a line") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise RetrievalError(f'{path} line {number}: expected an object with a string "text", such as {{"id": "a", "text": "..."}}')
        unknown = sorted(set(row) - set(FIELDS))
        if unknown:
            raise RetrievalError(f'{path} line {number}: unknown field {unknown[0]!r}; put what belongs to no other field into "metadata"')
        if not row["text"].strip():
            raise RetrievalError(f"{path} line {number} has no text: give it some, or leave it out")
        metadata = row.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise RetrievalError(f"{path} line {number}: metadata is {metadata!r}; expected an object of strings")
        name = row.get("id", f"{path.name}:{number}")
        text_of = {key: str(value) for key, value in metadata.items()}
        yield Passage(str(name), row["text"], row.get("title") or "", row.get("source") or str(path.name), text_of)


def _paragraphs(path: Path, text: str) -> Iterator[Passage]:
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    for number, paragraph in enumerate((p for p in paragraphs if p), start=1):
        yield Passage(f"{path.name}:{number}", paragraph, source=path.name)


READERS = {".jsonl": _rows, ".txt": _paragraphs}
