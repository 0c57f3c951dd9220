"""Sources of documents and records: text, JSONL, JSON, CSV, Parquet, TFDS and Hugging Face data.

A source is a name: a path or glob, also of gs:// or s3://; tfds:NAME[/CONFIG][:SPLIT];
hf:NAME[:SPLIT]. A document is one string.
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

from lm.data.read import files as reading
from lm.data.read.files import (
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
LONGEST = 1 << 30  # maximum characters of a CSV cell
NAMED = 3  # bad records that a message names
TEXT = "text"  # field of the records of a text file
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # JSON escape of a surrogate, valid only in a pair

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """Record, or its problem. where: "FILE, line N", or entry N of a list, row N of a table."""

    where: str
    value: Any = None
    problem: str = ""


@dataclasses.dataclass
class Tally:
    """Counts of what was read. records: good and bad. first: problems of the first bad ones.

    bytes: of the files. texts: text files. undivided: text files without the separator.
    """

    records: int = 0
    bad: int = 0
    first: list[str] = dataclasses.field(default_factory=list)
    bytes: int = 0
    texts: int = 0
    undivided: int = 0

    def count(self, row: Row, most: float) -> bool:
        """Count a row and return whether it is good.

        most: maximum share of bad rows. Raises DataError for a bad row if it is 0.
        """
        self.records += 1
        if not row.problem:
            return True
        self.bad += 1
        self.first += [f"{row.where}: {row.problem}"] * (len(self.first) < NAMED)
        if not most:
            raise DataError(f"{row.where}: {row.problem}")
        return False

    def close(self, most: float) -> None:
        """Report the bad records. Raises DataError when they are more than the share `most`."""
        if self.bad > most * self.records:
            raise DataError(
                f"{self.bad:,} of {self.records:,} records cannot be used, more than "
                f"data.max_bad_share={most:g} allows: "
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
    """Yield the records of one source in order; bad lines of JSONL too, with their problem.

    Only a .json file is read into memory as a whole.
    .jsonl, .jsonlines, .ndjson: one JSON value per line.
    .json: a list, an object {"data": [...]}, or else JSONL.
    .csv, .tsv: one object per row, after a header line.
    .parquet, tfds:, hf: one object per row.
    Other suffixes: text, one document or several divided by `separator`, as {"text": ...}.
    All but Parquet may be compressed (.gz, .bz2, .xz, .zst), and are UTF-8, or UTF-16 with a byte
    order mark. Raises DataError when the file cannot be read.
    """
    try:
        yield from _rows(file, separator, Tally() if tally is None else tally)
    except reading.DAMAGE as e:
        if not reading.is_packed(file) or isinstance(e, FileNotFoundError | PermissionError):
            raise
        raise DataError(
            f"{file}: not a whole {reading.PACKED[os.path.splitext(file.lower())[1]]} file "
            f"({e}); fetch it again"
        ) from None


def _rows(file: str, separator: str, tally: Tally) -> Iterator[Row]:
    if file.startswith(SETS) or kind(file) == ".parquet":
        from lm.data.read import tables

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
    """Yield (where, record) for every record of the files; only objects are good records.

    Up to the share `max_bad_share` of bad records are left out, counted in `tally` and warned
    about. More raise DataError, with file and line: at the first one if the share is 0, else at the
    end.
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
    """Yield the non-empty documents of the files in order.

    A document is the string in `field` of a record, or the text of a text file (see `rows`).
    Raises DataError, with file and line, for a record without such a string or a file that is not
    UTF-8. `max_bad_share` and `tally` are as in `records`.
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
    """Warning about a separator that occurs in no file."""
    if not texts:
        return f"the separator {separator!r} is for text files, and none was read"
    return (
        f"the separator {unescaped(separator)!r} occurs in none of the {texts:,} text files, so "
        "each is one document; \\n and \\t "
        "stand for a new line and a tab, and \\\\ for a backslash"
    )


def _no_text(record: Any, field: str) -> str:
    if not isinstance(record, dict) or field not in record:
        fields = f"; it has {', '.join(map(repr, record))}" if isinstance(record, dict) else ""
        return f"no field {field!r}{fields}; set task.field to the one that holds the text"
    return (
        ""
        if isinstance(record[field], str)
        else f"field {field!r} is {type(record[field]).__name__}, expected a string"
    )


def parse(line: bytes, where: str) -> Row:
    """Parse a line of JSONL."""
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
                    f"{file}, line 1: two columns have the same name; expected a line of names, "
                    "each once"
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
    """Whether a document is held out, by a hash of it, independent of all other documents."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) < share * 2**64


def content_hash(files: list[str]) -> str:
    """SHA-256 of the files' suffixes and contents, in order, independent of their paths."""
    total = hashlib.sha256()
    for file in files:
        if file.startswith(SETS):
            from lm.data.read import tables

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
