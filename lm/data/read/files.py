"""Find, decompress and decode files of text and records; refuse other kinds with advice."""

import bz2
import codecs
import fnmatch
import glob
import gzip
import io
import json
import logging
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

log = logging.getLogger(__name__)


class DataError(ValueError):
    """Unusable data. The message names the file, and the line if there is one."""


SETS = ("tfds:", "hf:")  # prefixes of data set names, which lm/data/read/tables.py reads
LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = {".csv": ",", ".tsv": "\t"}
RECORDS = (*LINES, ".json", ".parquet", *TABLES)
PROSE = (".txt", ".text", ".md")  # text files that are read from a folder, besides records
PACKED = {
    ".gz": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".lzma": "lzma",
    ".zst": "zstd",
    ".zstd": "zstd",
}
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError)
MARKUP = (
    "convert it to text first, with HTML's tags taken out, or rename it to .txt to learn its "
    "tags too"
)
DOCUMENT = "convert it to text first (such as pdftotext, or pandoc -t plain)"
ARROW = "save it as Parquet or JSONL (data_set.to_parquet, data_set.to_json)"
ARCHIVE = "unpack it, and name the files in it"
REFUSED = {
    **dict.fromkeys((".html", ".htm", ".xhtml", ".xml"), MARKUP),
    **dict.fromkeys((".arrow", ".feather"), ARROW),
    **dict.fromkeys(
        (".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".ppt", ".pptx", ".ps", ".djvu"),
        DOCUMENT,
    ),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "save the sheet as .csv"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".z", ".br", ".sz"), ARCHIVE),
    **dict.fromkeys(
        (".db", ".sqlite", ".pkl", ".pickle", ".npy", ".npz", ".bin", ".idx", ".orc", ".avro"),
        "save it as JSONL or Parquet",
    ),
}
MAGIC = {
    b"%PDF-": DOCUMENT,
    b"PK\x03\x04": ARCHIVE + " (or convert it, if it is .docx, .xlsx or .epub)",
    b"PAR1": "rename it to .parquet",
    b"ARROW1": ARROW,
    b"\x1f\x8b": "rename it to end in .gz",
    b"BZh": "rename it to end in .bz2",
    b"\xfd7zXZ": "rename it to end in .xz",
    b"\x28\xb5\x2f\xfd": "rename it to end in .zst",
    b"{\\rtf": DOCUMENT,
    b"SQLite format": "save it as JSONL or Parquet",
}
WIDE = {  # byte order mark -> encoding, longer marks first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PROBE = 1 << 12  # leading bytes that are used to detect the kind of a file
MARK = "\ufeff"  # UTF-8's byte order mark; concatenated files also have it inside


def find_files(patterns: str) -> list[str]:
    """Expand comma-separated names, paths, folders and globs (`**` crosses folders) to files.

    Sorted within each pattern, without duplicates. A name that exists is that file, even if it
    contains commas, brackets or stars. A folder stands for the texts and records in it. Raises
    DataError when a pattern matches no file.
    """
    files: dict[str, None] = {}
    for pattern in split(patterns):
        if pattern.startswith(SETS):
            found = [pattern]
        elif "://" in pattern:
            found = _remote(pattern)
        elif os.path.isdir(os.path.expanduser(pattern)):
            found = inside(pattern, (*PROSE, *RECORDS))
        else:
            found = [f for f in matching(pattern) if os.path.isfile(f)]
        if not found:
            raise DataError(
                f"no file matches {pattern!r} (looked from {os.getcwd()}); give a file or a glob "
                "such as 'data/*.txt'"
            )
        files.update(dict.fromkeys(found))
    if not files:
        raise DataError("no data files were given; give a file or a glob such as 'data/*.txt'")
    return list(files)


def split(patterns: str) -> list[str]:
    """Split a comma-separated list. Commas inside the longest existing name are part of it."""
    parts, found, at = patterns.split(","), [], 0
    while at < len(parts):
        ends = (
            end
            for end in range(len(parts), at, -1)
            if _there(os.path.expanduser(",".join(parts[at:end]).strip()))
        )
        end = next(ends, at + 1)
        found.append(",".join(parts[at:end]).strip())
        at = end
    return [name for name in found if name]


def _there(name: str) -> bool:
    """Whether the name exists, or a leading folder of it that contains its last comma."""
    if os.path.exists(name) or "," not in name:
        return os.path.exists(name)
    end = name.find("/", name.rfind(","))
    return end > 0 and os.path.isdir(name[:end])


def matching(pattern: str) -> list[str]:
    """Paths that a name or glob matches, sorted. A leading part that exists is taken literally."""
    path = os.path.expanduser(pattern)
    if os.path.exists(path):
        return [path]
    above, below = path, []
    while above and not os.path.isdir(above) and above != os.path.dirname(above):
        above, last = os.path.split(above)
        below.insert(0, last)
    root = glob.escape(above) if above and os.path.isdir(above) else above
    return sorted(
        glob.glob(os.path.join(root, *below) if root else os.path.join(*below), recursive=True)
    )


def inside(folder: str, kinds: tuple[str, ...]) -> list[str]:
    """Files of these kinds directly in a folder, sorted, without hidden files.

    Raises DataError when there is none.
    """
    path = os.path.expanduser(folder)
    names = sorted(
        name for name in os.listdir(path) if not name.startswith(".") and kind(name) in kinds
    )
    found = [os.path.join(path, name) for name in names if os.path.isfile(os.path.join(path, name))]
    if not found:
        raise DataError(
            f"the folder {folder} holds no file ending in {', '.join(kinds)}; name other files, "
            f"or '{os.path.join(folder, '**', '*.txt')}' "
            "for those in folders below it"
        )
    return found


def _remote(pattern: str) -> list[str]:
    from etils import epath

    scheme, _, path = pattern.partition("://")
    bucket, *parts = path.split("/")
    fixed = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    try:
        folder = epath.Path("/".join([f"{scheme}://{bucket}", *parts[:fixed]]))
        if fixed == len(parts) or epath.Path(pattern).is_file():
            return [pattern] if epath.Path(pattern).is_file() else []
        return sorted(_matching(folder, parts[fixed:]))
    except (
        Exception
    ) as e:  # any error of the storage client: missing package, credentials or bucket
        raise DataError(
            f"{pattern} cannot be reached ({type(e).__name__}: "
            f"{(str(e).splitlines() or [''])[0][:200]}); object storage needs its client "
            "(pip install gcsfs, or s3fs) and credentials (gcloud auth application-default login)"
        ) from e


def _matching(folder: Any, parts: list[str]) -> Iterator[str]:
    """Files below a folder whose path matches the globs, one per level; ** matches any depth."""
    if parts[0] == "**" and parts[1:]:
        yield from _matching(folder, parts[1:])
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            rest = (
                parts
                if parts[0] == "**"
                else parts[1:]
                if fnmatch.fnmatchcase(path.name, parts[0])
                else []
            )
            yield from _matching(path, rest) if rest else ()
        elif len(parts) == 1 and fnmatch.fnmatchcase(path.name, parts[0]):
            yield str(path)


def kind(file: str) -> str:
    """Suffix that decides how a file is read: lower case, without the compression suffix.

    "" for the name of a data set.
    """
    if file.startswith(SETS):
        return ""
    name, last = os.path.splitext(file.lower())
    return os.path.splitext(name)[1] if last in PACKED else last


def is_packed(file: str) -> bool:
    """Whether a file is decompressed when it is read."""
    return os.path.splitext(file.lower())[1] in PACKED


def open_bytes(file: str) -> IO[bytes]:
    """Open a local or remote file for reading; decompress it if its suffix is in PACKED."""
    from etils import epath

    raw: Any = epath.Path(file).open("rb") if "://" in file else open(file, "rb")  # noqa: SIM115
    suffix = os.path.splitext(file.lower())[1]
    if suffix in (".zst", ".zstd"):
        import pyarrow

        return io.BufferedReader(
            pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        )
    unpack: dict[str, Any] = {
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".lzma": lzma.open,
    }
    return unpack[suffix](raw) if suffix in unpack else raw


def check_kind(file: str) -> None:
    """Raise DataError, with advice, for a file whose suffix is neither text nor records."""
    if advice := REFUSED.get(kind(file)):
        raise DataError(f"{file}: {kind(file)} files are not read: {advice}")


def text_of(raw: bytes, file: str) -> str:
    """Decode a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Byte order marks are removed, and line endings become a newline. Raises DataError for other
    encodings, binary content and JSON; JSON in a .txt file is only warned about.
    """
    check_bytes(raw[:PROBE], file)
    encoding = _encoding(raw)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise DataError(f"{file}, line {line}: {not_utf8(raw[e.start], encoding)}") from None
    text = text.replace(MARK, "").replace("\r\n", "\n")
    text = text if "\n" in text else text.replace("\r", "\n")
    if what := _is_json(text):
        said = (
            f"{file}: it holds {what}, to be learned as prose; rename it, and set task.field to "
            "the one with the text"
        )
        if kind(file) not in PROSE:
            raise DataError(said)
        log.warning("%s", said)
    return text


def not_utf8(byte: int, encoding: str = "utf-8") -> str:
    """Message about a byte that does not decode, with advice."""
    return (
        f"byte {byte:#04x} is not {encoding.upper()}; convert the file first, e.g. iconv -f "
        "WINDOWS-1252 -t UTF-8, or what it is in"
    )


def check_bytes(head: bytes, file: str) -> None:
    """Raise DataError when a file starts like a binary format. head: its first bytes."""
    for magic, advice in MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{file}: it is no text, whatever its name says: {advice}")
    if b"\x00" in head and _encoding(head) == "utf-8":
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) > max(3, len(head) / 4) and min(even, odd) < max(even, odd) / 8:
            name = "UTF-16BE" if even > odd else "UTF-16LE"
            raise DataError(
                f"{file}: it looks like {name} without a byte order mark; convert it: iconv -f "
                f"{name} -t UTF-8"
            )
        raise DataError(
            f"{file}: it holds zero bytes, so it is no text in UTF-8; convert it to text, JSONL "
            "or Parquet"
        )


def lines(opened: IO[bytes], file: str) -> Iterator[bytes]:
    """Yield the lines of an open file as UTF-8, without byte order marks.

    Raises DataError as `text_of` does.
    """
    stream: Any = opened if hasattr(opened, "peek") else io.BufferedReader(opened)  # ty: ignore
    head = stream.peek(PROBE)[:PROBE]
    check_bytes(head, file)
    mark = MARK.encode()
    if (encoding := _encoding(head)) != "utf-8":
        try:
            for line in io.TextIOWrapper(stream, encoding=encoding, newline="\n"):
                yield line.encode()
        except UnicodeError as e:
            raise DataError(
                f"{file}: not {encoding.upper()}, as its byte order mark says ({e})"
            ) from None
        return
    for line in stream:
        yield line.removeprefix(mark)


def _encoding(head: bytes) -> str:
    return next((name for mark, name in WIDE.items() if head.startswith(mark)), "utf-8")


def _is_json(text: str) -> str:
    """Kind of JSON that a text is, in words; "" if it is not JSON."""
    first = next((line for line in text.split("\n", 3)[:3] if line.strip()), "").strip()
    if first[:1] not in ("{", "["):
        return ""
    try:
        if isinstance(json.loads(first), dict):
            return "a JSON object a line (.jsonl)"
    except (ValueError, RecursionError):
        pass
    try:
        return "JSON (.json)" if isinstance(json.loads(text), dict | list) else ""
    except (ValueError, RecursionError):
        return ""


_ESCAPE = re.compile(r"\\(n|r|t|f|v|0|\\|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0", "\\": "\\"}


def unescaped(separator: str) -> str:
    r"""Separator with the escapes \n, \t, \\, \xHH and \uHHHH replaced; CRLF becomes a newline."""
    found = _ESCAPE.sub(lambda m: _ESCAPED.get(m[1]) or chr(int(m[1][1:], 16)), separator)
    return found.replace("\r\n", "\n")
