"""Document: what a reader makes of a file or a row, before it is cut into passages; Report: what was read, and what was not."""

import codecs
import collections
import dataclasses
import re

from retrieval.errors import RetrievalError
from retrieval.passages import moment

FILE = "file"  # the metadata that names the file of a row with a source of its own
FILE_TOO = "openbook:file"  # where the row has a "file" itself
NAMED = 3  # of what was skipped or cannot be used, in a message
UNUSABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
)  # control characters but tab and newline; half surrogate pairs


@dataclasses.dataclass(frozen=True)
class Heading:
    """[start, end) of a heading in its document's text, in characters; level 1 is the highest."""

    start: int
    end: int
    level: int
    title: str


@dataclasses.dataclass(frozen=True)
class Document:
    """name: what the ids of its passages begin with. where: file, and line or row, for messages. pages: where each page begins.

    text: what spans count in. way: how it is best cut. whole: one passage, with the name as its id, as long as it is short enough.
    time: ISO 8601, "" unknown. origin: see files.File.
    tags, access, span (where the text stands in its source): only ever from rows, whose fields say so.
    """

    name: str
    text: str
    where: str
    title: str = ""
    source: str = ""
    time: str = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    tags: tuple[str, ...] = ()
    access: str = ""
    span: tuple[int, int] | None = None
    headings: tuple[Heading, ...] = ()
    pages: tuple[int, ...] = ()
    way: str = "headings"
    whole: bool = False
    origin: str = ""


def read_from(source: str, metadata: dict[str, str]) -> str:
    """The file that a passage of this source and metadata was read from."""
    return metadata.get(FILE_TOO) or metadata.get(FILE) or source


def in_utf16(raw: bytes) -> bool:
    """Whether a text begins as UTF-16 does, which Windows writes."""
    return raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not raw.startswith(
        codecs.BOM_UTF32_LE
    )


class Unusable(Exception):
    """Why a document or row cannot be read, and what to do; its reader says where."""


@dataclasses.dataclass
class Report:
    """documents: read, good and bad. bad: those left out. skipped: what was no document, by reason; examples: some of either."""

    most_bad: float = 0.0
    documents: int = 0
    bad: int = 0
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        self.skipped[reason] += 1
        self._example(reason, name)

    def count(self, where: str, problem: str = "") -> None:
        """Counts a document. Raises RetrievalError at once when it has a problem and none may be bad."""
        self.documents += 1
        if problem:
            self.bad += 1
            self._example("bad", where + problem)
            if not self.most_bad:
                raise RetrievalError(where + problem)

    def close(self) -> None:
        """Raises RetrievalError when more documents were bad than the share that may be."""
        if self.bad > self.most_bad * self.documents:
            raise RetrievalError(
                f"{self.bad:,} of {self.documents:,} documents and rows cannot be used, more than --max-bad-share={self.most_bad:g} "
                f"allows: {'; '.join(self.examples.get('bad', []))}"
            )

    def _example(self, reason: str, name: str) -> None:
        named = self.examples.setdefault(reason, [])
        named += [name] * (len(named) < NAMED)


def plain(text: str) -> str:
    """The text with one kind of line end, and a space or U+FFFD for what no passage can hold; printable once its whitespace is joined."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return UNUSABLE.sub(lambda found: "\ufffd" if found[0] >= "\ud800" else " ", text)


def one_line(text: str, most: int = 200) -> str:
    """A title: whitespace joined, cut after a word."""
    text = " ".join(plain(text).split())
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0]


def printable(name: str) -> str:
    """A name that can be an id or a line of a log: what does not print becomes %XX, of its UTF-8 bytes."""
    return "".join(
        c
        if c.isprintable()
        else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogateescape"))
        for c in name
    )


def known_time(said: str) -> str:
    """What a document says of its time, when it is ISO 8601; else ""."""
    try:
        return said.strip() if moment(said.strip()) else ""
    except RetrievalError:
        return ""
