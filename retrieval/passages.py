"""Passage, Hit and Commit: what goes into a memory, what comes out, and what happened to it."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable

from retrieval.errors import RetrievalError

MAX_ID_CHARACTERS = 512
MAX_TEXT_CHARACTERS = 1_000_000
SHOWN = 5  # names listed in an error message


@dataclasses.dataclass(frozen=True)
class Passage:
    """A piece of text with a name. id: unique in its memory; metadata: str -> str, kept but not searched."""

    id: str
    text: str
    title: str = ""
    source: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def searchable(self) -> str:
        """The text an encoder sees: the title, if any, then the text."""
        return f"{self.title}. {self.text}" if self.title else self.text

    @property
    def content_hash(self) -> str:
        """sha256, in hex, over all five fields."""
        content = json.dumps([self.id, self.text, self.title, self.source, self.metadata], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that was found. score: cosine similarity in [-1, 1]; version: the commit that wrote this text."""

    id: str
    text: str
    title: str
    source: str
    score: float
    version: int
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Commit:
    """One change of a memory. action: create | add | edit | delete | undo; time: ISO 8601, UTC; ids: the passages it touched."""

    version: int
    action: str
    author: str
    reason: str
    time: str
    ids: tuple[str, ...]


def check_passages(passages: Iterable[Passage]) -> list[Passage]:
    """The passages as a list. Raises RetrievalError for a wrong type, an empty or huge text, a bad id or an id given twice."""
    checked = list(passages)
    seen: set[str] = set()
    for number, passage in enumerate(checked):
        if not isinstance(passage, Passage):
            raise RetrievalError(f"item {number} is a {type(passage).__name__}; expected a retrieval.Passage(id, text, ...)")
        check_id(passage.id)
        if passage.id in seen:
            raise RetrievalError(f"id {passage.id!r} is given twice in one call: give every passage an id of its own")
        seen.add(passage.id)
        check_text(passage.id, passage.text)
        for name in ("title", "source"):
            if not isinstance(getattr(passage, name), str):
                raise RetrievalError(f"passage {passage.id!r}: {name} is {getattr(passage, name)!r}; expected a string")
            check_unicode(f"passage {passage.id!r}: {name}", getattr(passage, name))
        if not isinstance(passage.metadata, dict):
            raise RetrievalError(f"passage {passage.id!r}: metadata is a {type(passage.metadata).__name__}; expected a dict of strings")
        for key, value in passage.metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise RetrievalError(f"passage {passage.id!r}: metadata {key!r}: {value!r} is no pair of strings; turn both into strings")
            check_unicode(f"passage {passage.id!r}: metadata", key + value)
    return checked


def check_id(id: str) -> None:
    """Raises RetrievalError unless `id` is a string of 1 to 512 printable characters."""
    if not isinstance(id, str) or not id or len(id) > MAX_ID_CHARACTERS or not id.isprintable():
        shown = repr(id) if len(repr(id)) < 80 else repr(id)[:77] + "..."
        raise RetrievalError(f"passage id {shown} is not usable: expected 1 to {MAX_ID_CHARACTERS} printable characters, as a string")


def check_text(id: str, text: str) -> None:
    """Raises RetrievalError for a text that is no string, is blank, is not valid Unicode or has over a million characters."""
    if not isinstance(text, str):
        raise RetrievalError(f"passage {id!r}: text is a {type(text).__name__}; expected a string")
    if not text.strip():
        raise RetrievalError(f"passage {id!r} has no text: give it some, or leave it out")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RetrievalError(
            f"passage {id!r} has {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} make one passage: split it into paragraphs"
        )
    check_unicode(f"passage {id!r}: text", text)


def check_unicode(what: str, text: str) -> None:
    """Raises RetrievalError when the string holds half a surrogate pair, which no file can store."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RetrievalError(f"{what} is not valid Unicode at character {error.start}: decode the file with its right encoding") from None


def listed(names: Iterable[str]) -> str:
    """The first few names, quoted, and how many more there are; for error messages."""
    names = list(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more
