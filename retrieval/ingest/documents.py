"""Document: the content of a file or row before it is cut; Report: what was read and skipped."""

import codecs
import collections
import dataclasses
import re

from retrieval.errors import RetrievalError
from retrieval.passages import moment

FILE = "file"  # metadata key of a row's file, where the row has a source of its own
FILE_TOO = "openbook:file"  # the same, where the row has a "file" itself
NAMED = 3  # examples per reason in a message
# Control characters except tab and newline; lone surrogates.
UNUSABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading and its span [start, end) in the document's text, in characters.

    level: 1 is the highest.
    """

    start: int
    end: int
    level: int
    title: str


@dataclasses.dataclass(frozen=True)
class Document:
    """The text of a file or row, with what its passages inherit.

    name: the prefix of its passages' ids.
    text: what spans refer to.
    where: file, and line or row, for messages.
    time: ISO 8601, "" if unknown.
    tags, access, span (of the text in its source): set by fields of rows only.
    pages: where each page begins.
    way: how to cut it by default.
    whole: make it one passage with the name as its id, if short enough.
    origin: see files.File.
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
    """Return the file that a passage with this source and metadata was read from."""
    return metadata.get(FILE_TOO) or metadata.get(FILE) or source


def in_utf16(raw: bytes) -> bool:
    """Whether a text begins with a UTF-16 byte order mark, which Windows writes."""
    return raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not raw.startswith(
        codecs.BOM_UTF32_LE
    )


class Unusable(Exception):
    """Why a document or row cannot be read, and what to do; the caller adds where."""


@dataclasses.dataclass
class Report:
    """Counts of what was read.

    documents: read, good and bad. bad: those left out.
    skipped: files that are not documents, by reason.
    examples: names of some bad and skipped ones, by reason.
    """

    most_bad: float = 0.0
    documents: int = 0
    bad: int = 0
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        self.skipped[reason] += 1
        self._example(reason, name)

    def count(self, where: str, problem: str = "") -> None:
        """Count a document.

        Raises RetrievalError at once if it has a problem and no bad ones are allowed.
        """
        self.documents += 1
        if problem:
            self.bad += 1
            self._example("bad", where + problem)
            if not self.most_bad:
                raise RetrievalError(where + problem)

    def close(self) -> None:
        """Raise RetrievalError when the share of bad documents is too high."""
        if self.bad > self.most_bad * self.documents:
            raise RetrievalError(
                f"{self.bad:,} of {self.documents:,} documents and rows cannot be used, more than "
                f"--max-bad-share={self.most_bad:g} allows: "
                f"{'; '.join(self.examples.get('bad', []))}"
            )

    def _example(self, reason: str, name: str) -> None:
        named = self.examples.setdefault(reason, [])
        named += [name] * (len(named) < NAMED)


def plain(text: str) -> str:
    """Normalise line ends and replace characters that a passage cannot hold.

    Control characters become spaces, lone surrogates U+FFFD. The result is printable once its white
    space is collapsed.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return UNUSABLE.sub(lambda found: "\ufffd" if found[0] >= "\ud800" else " ", text)


def one_line(text: str, most: int = 200) -> str:
    """Collapse white space and shorten to `most` characters after a word, as for a title."""
    text = " ".join(plain(text).split())
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0]


def printable(name: str) -> str:
    """Make a name printable, for ids and logs: other characters become %XX of their UTF-8."""
    return "".join(
        c
        if c.isprintable()
        else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogateescape"))
        for c in name
    )


def known_time(said: str) -> str:
    """Return the time a document states if it is ISO 8601, else ""."""
    try:
        return said.strip() if moment(said.strip()) else ""
    except RetrievalError:
        return ""
