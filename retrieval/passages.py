"""Passage, Hit, Commit and Diff, with the checks of what users pass in."""

import dataclasses
import datetime
import difflib
import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable

from retrieval.errors import RetrievalError

MAX_ID_CHARACTERS = 512
MAX_TEXT_CHARACTERS = 1_000_000
MAX_RECORD_CHARACTERS = 10_000  # of an author or a reason
MAX_WORD_CHARACTERS = 128  # of a tag or an access group
SHOWN = 5  # names listed in an error message


@dataclasses.dataclass(frozen=True)
class Passage:
    """A piece of text with an id that is unique in its memory.

    metadata: str -> str, stored but not searched.
    span: [start, end) in the source document, in characters.
    time: of the content, ISO 8601 ("1998", "2026-11-24T10:00Z"; UTC without a zone), "" if unknown.
    tags: free words.
    access: the group that may read it, "" for everybody.
    origin: the file that a build read it from; "" where no build did, None in a memory made before
    origins were recorded.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    span: tuple[int, int] | None = None
    time: str = ""
    tags: tuple[str, ...] = ()
    access: str = ""
    origin: str | None = dataclasses.field(default="", compare=False)

    @property
    def searchable(self) -> str:
        """The searched text: the title, if any, then the text."""
        return titled(self.title, self.text)

    @property
    def content_hash(self) -> str:
        """The sha256 of all fields, in hex.

        Fields after metadata are included only if one is set, as format 1 had none of them.
        """
        later = [self.span, self.time, self.tags, self.access]
        fields = [
            self.id,
            self.text,
            self.title,
            self.source,
            self.metadata,
            *(later if any(later) or self.origin else []),
        ]
        fields += [self.origin] if self.origin else []
        content = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def titled(title: str, text: str) -> str:
    return f"{title}. {text}" if title else text


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that a search found.

    score: cosine in [-1, 1], or the score of the search mode.
    version: the commit that wrote this text.
    """

    id: str
    text: str
    title: str
    source: str
    score: float
    version: int
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    span: tuple[int, int] | None = None
    time: str = ""
    tags: tuple[str, ...] = ()
    access: str = ""
    origin: str | None = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Commit:
    """One change of a memory.

    action: create | add | edit | delete | undo | reembed.
    time: ISO 8601, UTC.
    ids: the passages it touched.
    """

    version: int
    action: str
    author: str
    reason: str
    time: str
    ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Diff:
    """Sorted ids of the passages that differ between two versions."""

    added: tuple[str, ...]
    edited: tuple[str, ...]
    deleted: tuple[str, ...]


def items(given: Iterable, expected: str) -> list:
    """Return `given` as a list.

    Raises RetrievalError for what is not iterable, such as an array without dimensions.
    """
    try:
        each = iter(given)
    except TypeError:
        raise RetrievalError(f"{given!r:.80} cannot be listed: expected {expected}") from None
    return list(each)


def checked_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids as a list; a single string is one id. Raises RetrievalError for a bad id."""
    checked = [ids] if isinstance(ids, str) else items(ids, "passage ids")
    for id in checked:
        check_id(id)
    return checked


def check_record(author: str | None, reason: str) -> None:
    """Raise RetrievalError for an author or reason that the log cannot store."""
    for name, value in (("author", "" if author is None else author), ("reason", reason)):
        check_unicode(name, value)
        if len(value) > MAX_RECORD_CHARACTERS:
            raise RetrievalError(
                f"the {name} has {len(value):,} characters; at most {MAX_RECORD_CHARACTERS:,} "
                "are kept in the log"
            )


def check_passages(passages: Iterable[Passage]) -> list[Passage]:
    """Return the passages as a list.

    Raises RetrievalError for a wrong type, an empty or huge text, a bad id or a repeated id.
    """
    checked = items(passages, "a list of retrieval.Passage(id, text, ...)")
    seen: set[str] = set()
    for number, passage in enumerate(checked):
        if not isinstance(passage, Passage):
            raise RetrievalError(
                f"item {number} is a {type(passage).__name__}; expected a retrieval.Passage(id, "
                "text, ...)"
            )
        check_id(passage.id)
        if passage.id in seen:
            raise RetrievalError(
                f"id {passage.id!r} is given twice in one call: give every passage an id of its own"
            )
        seen.add(passage.id)
        check_text(passage.id, passage.text)
        for name in ("title", "source", "time", "access"):
            if not isinstance(getattr(passage, name), str):
                raise RetrievalError(
                    f"passage {passage.id!r}: {name} is {getattr(passage, name)!r}; expected a "
                    "string"
                )
            check_unicode(f"passage {passage.id!r}: {name}", getattr(passage, name))
        if not isinstance(passage.metadata, dict):
            raise RetrievalError(
                f"passage {passage.id!r}: metadata is a {type(passage.metadata).__name__}; "
                "expected a dict of strings"
            )
        for key, value in passage.metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise RetrievalError(
                    f"passage {passage.id!r}: metadata {key!r}: {value!r} is no pair of strings; "
                    "turn both into strings"
                )
            check_unicode(f"passage {passage.id!r}: metadata", key + value)
        if passage.origin is not None:
            check_unicode(f"passage {passage.id!r}: origin", passage.origin)
        if not isinstance(passage.tags, tuple):
            raise RetrievalError(
                f"passage {passage.id!r}: tags is {passage.tags!r}; expected a tuple of words"
            )
        for word in (*passage.tags, *([passage.access] if passage.access else [])):
            check_word(passage.id, word)
        size = (
            len(passage.title)
            + len(passage.source)
            + sum(len(key) + len(value) for key, value in passage.metadata.items())
        )
        size += sum(map(len, passage.tags))
        if size > MAX_TEXT_CHARACTERS:
            raise RetrievalError(
                f"passage {passage.id!r} has {size:,} characters of title, source and metadata, "
                f"with its tags; at most {MAX_TEXT_CHARACTERS:,} are kept"
            )
        if passage.time:
            moment(passage.time, f"passage {passage.id!r}: time")
        check_span(passage.id, passage.span)
    return checked


def ordinary(text: str) -> bool:
    """Whether every character is printable.

    Spaces of any width and the joiners within words (U+200C, U+200D) are; other invisible
    characters are not.
    """
    return all(
        c.isprintable() or c in "\u200c\u200d" or unicodedata.category(c) == "Zs" for c in text
    )


def check_word(id: str, word: str) -> None:
    """Raise RetrievalError for a tag or access group that is not 1 to 128 printable characters."""
    if not isinstance(word, str) or not 0 < len(word) <= MAX_WORD_CHARACTERS or not ordinary(word):
        raise RetrievalError(
            f"passage {id!r}: tag or access group {str(word)[:80]!r}: expected 1 to "
            f"{MAX_WORD_CHARACTERS} printable characters"
        )


def check_span(id: str, span: tuple[int, int] | None) -> None:
    """Raise RetrievalError unless `span` is None or two integers 0 <= start <= end."""
    if span is None:
        return
    whole = isinstance(span, tuple) and len(span) == 2 and all(type(n) is int for n in span)
    if not whole or not 0 <= span[0] <= span[1] < 2**63:
        raise RetrievalError(
            f"passage {id!r}: span is {span!r}; expected two whole numbers, 0 <= start <= end, "
            "or None"
        )


def moment(text: str | datetime.datetime, what: str = "time") -> datetime.datetime:
    """Return the first instant of an ISO 8601 text, which may be a year or a month.

    Text without a zone is UTC; a datetime without a zone is local time. Raises RetrievalError,
    naming `what`, for anything else.
    """
    if isinstance(text, datetime.datetime):
        try:
            return text if text.tzinfo else text.astimezone()
        except (OverflowError, ValueError, OSError):  # next to year 1 or 9999
            return text.replace(tzinfo=datetime.UTC)
    short = re.fullmatch(r"(\d{4})(-\d\d)?", text) if isinstance(text, str) else None
    try:
        then = datetime.datetime.fromisoformat(
            f"{short[1]}{short[2] or '-01'}-01" if short else text
        )
    except (TypeError, ValueError):
        raise RetrievalError(
            f"{what} is {text!r}; expected ISO 8601, such as 2026-11-24 or "
            "2026-11-24T10:00:00+01:00; UTC without a zone"
        ) from None
    return then if then.tzinfo else then.replace(tzinfo=datetime.UTC)


def check_id(id: str) -> None:
    """Raise RetrievalError unless `id` is a string of 1 to 512 printable characters."""
    if not isinstance(id, str) or not id or len(id) > MAX_ID_CHARACTERS or not ordinary(id):
        shown = repr(id) if len(repr(id)) < 80 else repr(id)[:77] + "..."
        raise RetrievalError(
            f"passage id {shown} is not usable: expected 1 to {MAX_ID_CHARACTERS} printable "
            "characters, as a string"
        )


def check_text(id: str, text: str) -> None:
    """Raise RetrievalError for a text that is not a string, blank, too long or invalid Unicode.

    The limit is a million characters.
    """
    if not isinstance(text, str):
        raise RetrievalError(f"passage {id!r}: text is a {type(text).__name__}; expected a string")
    if not text.strip():
        raise RetrievalError(f"passage {id!r} has no text: give it some, or leave it out")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise RetrievalError(
            f"passage {id!r} has {len(text):,} characters; at most {MAX_TEXT_CHARACTERS:,} make "
            "one passage: split it into paragraphs"
        )
    check_unicode(f"passage {id!r}: text", text)


def check_unicode(what: str, text: str) -> None:
    """Raise RetrievalError unless `text` is a string without lone surrogates."""
    if not isinstance(text, str):
        raise RetrievalError(f"{what} is a {type(text).__name__}; expected a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RetrievalError(
            f"{what} is not valid Unicode at character {error.start}: decode the file with its "
            "right encoding"
        ) from None


def listed(names: Iterable[str]) -> str:
    """Quote the first few names and count the rest, for error messages."""
    names = list(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more


def nearest(id: str, known: Iterable[str]) -> str:
    """Suggest a known id in a message: " (did you mean ...?)", or "" if none is close.

    It is one of the first 50,000 known ids that contains `id`, or else resembles it.
    """
    known = list(itertools.islice(known, 50_000))
    close = [
        other for other in known if id.casefold() in other.casefold()
    ] or difflib.get_close_matches(id, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def some(items: list, what: str) -> list:
    """Return the items. Raises RetrievalError when there are none."""
    if not items:
        raise RetrievalError(f"no {what} were given: expected at least one")
    return items
