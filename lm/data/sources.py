"""Sources: where documents come from. A document is one string; nothing else is known about it here."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator


class DataError(ValueError):
    """Data that cannot be used; the message names the file, and the line where there is one."""


def find_files(patterns: str) -> list[str]:
    """Files matching a comma-separated list of paths and globs (`**` crosses folders), sorted within each pattern, each file once.

    Raises DataError when a pattern matches no file.
    """
    files: dict[str, None] = {}
    for pattern in filter(None, (p.strip() for p in patterns.split(","))):
        found = sorted(f for f in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(f))
        if not found:
            raise DataError(f"no file matches {pattern!r} (looked from {os.getcwd()}); give a file or a glob such as 'data/*.txt'")
        files.update(dict.fromkeys(found))
    if not files:
        raise DataError("no data files were given; give a file or a glob such as 'data/*.txt'")
    return list(files)


def documents(files: list[str], field: str = "text", separator: str = "") -> Iterator[str]:
    """The non-empty documents of the files, in order.

    `.jsonl` files: one object a line, its string under `field`. Any other file: UTF-8 text, one document or several
    divided by `separator`.
    Raises DataError naming file and line when a line is not such an object or a file is not UTF-8.
    """
    for file in files:
        read = _jsonl(file, field) if file.endswith((".jsonl", ".ndjson")) else _text(file, separator)
        yield from (text for text in read if text.strip())


def _jsonl(file: str, field: str) -> Iterator[str]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise DataError(f"{where}: not JSON ({e}); expected one object a line, such as {{{json.dumps(field)}: ...}}") from None
            if not isinstance(record, dict) or field not in record:
                fields = f"; it has {', '.join(map(repr, record))}" if isinstance(record, dict) else ""
                raise DataError(f"{where}: no field {field!r}{fields}; set data.field to the one that holds the text")
            if not isinstance(record[field], str):
                raise DataError(f"{where}: field {field!r} is {type(record[field]).__name__}, expected a string")
            yield record[field]


def _text(file: str, separator: str) -> Iterator[str]:
    with open(file, "rb") as f:
        raw = f.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise DataError(f"{file}, line {line}: byte {raw[e.start]:#04x} is not UTF-8; convert the file first, e.g. with iconv") from None
    yield from (text.split(separator) if separator else [text])


def content_hash(files: list[str]) -> str:
    """SHA-256 over names' suffixes and contents, in order: what `documents` would read, not where it lies."""
    total = hashlib.sha256()
    for file in files:
        with open(file, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest() + os.path.splitext(file)[1].encode())
    return total.hexdigest()
