"""Sources: where documents and records come from: text, JSONL, JSON, Parquet, TFDS and Hugging Face data sets, here or in object storage.

A source is a name: a path or glob, also of gs:// or s3://; tfds:NAME[/CONFIG][:SPLIT]; hf:NAME[:SPLIT]. A document is one string.
"""

import csv
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from lm.data import files as reading
from lm.data.files import (
    LINES,
    RECORDS,
    SETS,
    TABLES,
    DataError,
    find_files,
    kind,
    open_bytes,
    unescaped,
)

__all__ = [
    "LINES",
    "SETS",
    "DataError",
    "Row",
    "Tally",
    "content_hash",
    "documents",
    "find_files",
    "is_held_out",
    "kind",
    "open_bytes",
    "records",
    "rows",
    "unescaped",
]
LONGEST = 1 << 30  # characters of a cell
NAMED = 3  # bad records named in a message
TEXT = "text"  # the field of a text file's records
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # escaped in JSON; half of a pair is no character

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A record, or what is wrong with one. where: "FILE, line N", or entry N of a list, row N of a table."""

    where: str
    value: Any = None
    problem: str = ""


@dataclasses.dataclass
class Tally:
    """What was read so far. records: good and bad ones.   first: what is wrong with the first bad ones.   bytes: of the files.

    texts, undivided: text files, and those of them in which the separator does not occur.
    """

    records: int = 0
    bad: int = 0
    first: list[str] = dataclasses.field(default_factory=list)
    bytes: int = 0
    texts: int = 0
    undivided: int = 0

    def count(self, row: Row, most: float) -> bool:
        """Whether a row is good. Raises DataError when it is not and `most`, the share that may be bad, is 0."""
        self.records += 1
        if not row.problem:
            return True
        self.bad += 1
        self.first += [f"{row.where}: {row.problem}"] * (len(self.first) < NAMED)
        if not most:
            raise DataError(f"{row.where}: {row.problem}")
        return False

    def close(self, most: float) -> None:
        """Says how many were bad. Raises DataError when they were more than the share `most`."""
        if self.bad > most * self.records:
            raise DataError(
                f"{self.bad:,} of {self.records:,} records cannot be used, more than data.max_bad_share={most:g} allows: "
                f"{'; '.join(self.first)}"
            )
        if self.bad:
            log.warning(
                "%s of %s records were left out: %s",
                f"{self.bad:,}",
                f"{self.records:,}",
                "; ".join(self.first),
            )


def rows(file: str, separator: str = "", tally: Tally | None = None) -> Iterator[Row]:
    """The records of one source, in order, one in memory at a time except in a .json file; bad lines of JSONL too, as such.

    .jsonl, .jsonlines, .ndjson: a JSON value a line.  .json: a list of them, or one in an object as {"data": [...]}, or else JSONL.
    .csv, .tsv: an object a row, with a line of names.  .parquet, tfds:, hf: an object a row.  Anything else: text, a document or several
    divided by `separator`, as {"text": ...}.  All but Parquet may be packed (.gz, .bz2, .xz, .zst), and UTF-8, or UTF-16 with its mark.
    Raises DataError when the file cannot be read as that.
    """
    try:
        yield from _rows(file, separator, Tally() if tally is None else tally)
    except reading.DAMAGE as e:
        if not reading.is_packed(file) or isinstance(e, FileNotFoundError | PermissionError):
            raise
        raise DataError(
            f"{file}: not a whole {reading.PACKED[os.path.splitext(file.lower())[1]]} file ({e}); fetch it again"
        ) from None


def _rows(file: str, separator: str, tally: Tally) -> Iterator[Row]:
    if file.startswith(SETS) or kind(file) == ".parquet":
        from lm.data import tables

        table = tables.open_table(file)
        yield from (Row(f"{file}, row {i + 1}", table[i]) for i in range(len(table)))
    elif kind(file) in LINES:
        yield from _lines(file, tally)
    elif kind(file) == ".json":
        yield from _json(file, tally)
    elif kind(file) in TABLES:
        yield from _table(file, tally)
    else:
        yield from (
            Row(f"{file}, document {i}", {TEXT: text})
            for i, text in enumerate(_text(file, separator, tally), 1)
        )


def records(
    files: list[str], *, separator: str = "", max_bad_share: float = 0.0, tally: Tally | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of every record of the files: objects only.

    Of bad records up to the share `max_bad_share` are left out, counted in `tally` and warned of. Raises DataError, naming file and
    line, at the first one when the share is 0, else at the end.
    """
    tally = Tally() if tally is None else tally
    for file in files:
        for row in rows(file, separator, tally):
            if not row.problem and not isinstance(row.value, dict):
                row = Row(
                    row.where, problem=f"it is {type(row.value).__name__}, expected an object"
                )
            if tally.count(row, max_bad_share):
                yield row.where, row.value
    tally.close(max_bad_share)


def documents(
    files: list[str],
    field: str = TEXT,
    separator: str = "",
    *,
    max_bad_share: float = 0.0,
    tally: Tally | None = None,
) -> Iterator[str]:
    """The non-empty documents of the files, in order: of records the string under `field`, of text files all there is (see `rows`).

    Raises DataError naming file and line when a record has no such string or a file is not UTF-8; the rest as in `records`.
    """
    tally = Tally() if tally is None else tally
    for file in files:
        name = field if kind(file) in RECORDS or file.startswith(SETS) else TEXT
        for row in rows(file, separator, tally):
            if not row.problem:
                row = Row(row.where, row.value, _no_text(row.value, name))
            elif row.problem.startswith("not JSON"):
                row = Row(row.where, problem=f"{row.problem}, such as {{{json.dumps(field)}: ...}}")
            if tally.count(row, max_bad_share) and (text := row.value[name]).strip():
                yield text
    tally.close(max_bad_share)
    if separator and tally.undivided == tally.texts:
        log.warning("%s", undivided(separator, tally.texts))


def undivided(separator: str, texts: int) -> str:
    """What is said of a separator that divides nothing."""
    if not texts:
        return f"the separator {separator!r} is for text files, and none was read"
    return (
        f"the separator {unescaped(separator)!r} occurs in none of the {texts:,} text files, so each is one document; \\n and \\t "
        "stand for a new line and a tab, and \\\\ for a backslash"
    )


def _no_text(record: Any, field: str) -> str:
    if not isinstance(record, dict) or field not in record:
        fields = f"; it has {', '.join(map(repr, record))}" if isinstance(record, dict) else ""
        return f"no field {field!r}{fields}; set data.field to the one that holds the text"
    return (
        ""
        if isinstance(record[field], str)
        else f"field {field!r} is {type(record[field]).__name__}, expected a string"
    )


def parse(line: bytes, where: str) -> Row:
    """A line of JSONL."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError as e:
        return Row(where, problem=reading.not_utf8(line[e.start]))
    except (ValueError, RecursionError) as e:
        why = (
            f"{e.msg.removesuffix(' at')} at character {e.pos + 1}"
            if isinstance(e, json.JSONDecodeError)
            else e
        )
        return Row(where, problem=f"not JSON ({why}); expected one object a line")
    return Row(where, value, _no_character(value) if SURROGATE.search(line) else "")


def _no_character(value: Any) -> str:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        return f"{e.object[e.start]!r} is half of a surrogate pair, and no character; remove it"
    return ""


def _lines(file: str, tally: Tally) -> Iterator[Row]:
    with open_bytes(file) as opened:
        for number, line in enumerate(reading.lines(opened, file), 1):
            tally.bytes += len(line)
            if line.strip():
                yield parse(line, f"{file}, line {number}")


def _json(file: str, tally: Tally) -> Iterator[Row]:
    with open_bytes(file) as f:
        raw = f.read()
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as e:
        if "Extra data" not in str(e):
            raise DataError(f"{file}: not JSON ({e})") from None
        yield from _lines(file, tally)
        return
    tally.bytes += len(raw)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    problem = _no_character if SURROGATE.search(raw) else lambda value: ""
    if isinstance(content, list):
        yield from (
            Row(f"{file}, entry {i}", value, problem(value)) for i, value in enumerate(content, 1)
        )
    else:
        yield Row(file, content, problem(content))


def _table(file: str, tally: Tally) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    number = 0
    with open_bytes(file) as opened:
        try:
            lines = csv.DictReader(
                _decoded(opened, file, tally), delimiter=TABLES[kind(file)], strict=True
            )
            names = lines.fieldnames or ()
            if len(set(names)) < len(names):
                raise DataError(
                    f"{file}, line 1: two columns have the same name; expected a line of names, each once"
                )
            for row in lines:
                number = lines.line_num
                short = None in row or None in row.values()
                problem = f"expected {len(names)} columns" if short else ""
                yield Row(f"{file}, line {number}", None if short else row, problem)
        except (csv.Error, UnicodeDecodeError) as e:
            why = (
                reading.not_utf8(e.object[e.start])
                if isinstance(e, UnicodeDecodeError)
                else f"cannot be read as a table ({e})"
            )
            raise DataError(f"{file}, line {number + 1}: {why}") from None


def _decoded(opened: IO[bytes], file: str, tally: Tally) -> Iterator[str]:
    for line in reading.lines(opened, file):
        tally.bytes += len(line)
        yield line.decode()


def _text(file: str, separator: str, tally: Tally) -> Iterator[str]:
    reading.check_kind(file)
    with open_bytes(file) as f:
        raw = f.read()
    tally.bytes += len(raw)
    text, separator = reading.text_of(raw, file), unescaped(separator)
    tally.texts += 1
    tally.undivided += bool(separator) and separator not in text
    yield from (text.split(separator) if separator else [text])


def is_held_out(content: str, share: float) -> bool:
    """Whether a document is of the share that is held out: by a hash of it, so that others that come or go change nothing."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) < share * 2**64


def content_hash(files: list[str]) -> str:
    """SHA-256 over names' suffixes and contents, in order: what `documents` would read, not where it lies."""
    total = hashlib.sha256()
    for file in files:
        if file.startswith(SETS):
            from lm.data import tables

            total.update(tables.fingerprint(file).encode())
            continue
        digest = hashlib.sha256()
        opened: Any = open(file, "rb") if "://" not in file else _opened(file)  # noqa: SIM115
        with opened as f:
            while block := f.read(1 << 20):
                digest.update(block)
        total.update(digest.digest() + os.path.splitext(file)[1].encode())
    return total.hexdigest()


def _opened(file: str) -> IO[bytes]:
    from etils import epath

    return epath.Path(file).open("rb")
