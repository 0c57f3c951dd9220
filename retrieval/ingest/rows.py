"""Row reader: JSONL, JSON, CSV, TSV, Parquet, TFDS and Hugging Face data sets.

A row is a document, and one passage unless it is too long.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from lm.data.read import sources
from retrieval.errors import RetrievalError
from retrieval.ingest.documents import FILE, FILE_TOO, Document, Report, Unusable
from retrieval.ingest.files import File
from retrieval.passages import Passage, check_passages, check_unicode

TEXT = "text"
# Fields of a Passage as JSON, beside the text.
FIELDS = ("id", "title", "source", "metadata", "time", "tags", "access", "span")
SUFFIXES = (*sources.LINES, ".csv", ".tsv", ".json", ".parquet")


def documents(
    file: File, report: Report, text_field: str | None = None, id_field: str = "id"
) -> Iterator[Document]:
    """Yield a document per row, named by its `id_field`, or <file name>:<line or row number>.

    Bad rows are counted in the report. A JSON row may only have known fields (and a passage's
    `origin`, which a build records anew). In a table, or with a `text_field`, every other field
    becomes metadata. Raises RetrievalError for a bad row when none are allowed;
    lm.data.read.sources.DataError when the source cannot be opened.
    """
    strict = text_field is None and sources.kind(file.path) in (*sources.LINES, ".json")
    for row in sources.rows(file.path):
        try:
            if row.problem:
                raise Unusable(f": {row.problem}")
            document = _document(
                row.value, row.where, file.name, text_field or TEXT, id_field, strict
            )
        except (Unusable, RetrievalError) as error:
            report.count(row.where, f"{'' if isinstance(error, Unusable) else ': '}{error}")
            continue
        report.count(row.where)
        yield document


def _document(row: Any, where: str, file: str, field: str, id_field: str, strict: bool) -> Document:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        has = (
            f"; it has {', '.join(map(repr, row))}, and --text-field says which holds the text"
            if isinstance(row, dict)
            else ""
        )
        has = f"; here it is {row[field]!r}" if isinstance(row, dict) and field in row else has
        raise Unusable(
            f': expected an object with a string "{field}", such as {{"id": "a", "{field}": '
            f'"..."}}{has}'
        )
    if id_field != "id" and row.get(id_field) in (None, ""):
        raise Unusable(
            f" has no {id_field!r}, which --id-field names; it has {', '.join(map(repr, row))}"
        )
    own = {*FIELDS, field, id_field, *(["origin"] if strict else [])} - (
        {"id"} if id_field != "id" else set()
    )
    others = [name for name in row if name not in own]
    if strict and others:
        raise Unusable(
            f': unknown field {others[0]!r}; put it into "metadata", or give '
            f"--text-field={field}, which puts all such there"
        )
    if not row[field].strip():
        raise Unusable(" has no text: give it some, or leave it out")
    metadata, tags = row.get("metadata") or {}, row.get("tags") or []
    if not isinstance(metadata, dict):
        raise Unusable(f": metadata is {metadata!r}; expected an object of strings")
    if isinstance(tags, str) and not strict:  # a table cell
        tags = [tag.strip() for tag in re.split("[,;]", tags) if tag.strip()]
    if not isinstance(tags, list):
        raise Unusable(f": tags is {tags!r}; expected a list of words")
    if (span := row.get("span")) is not None:
        if not isinstance(span, list):
            raise Unusable(
                f": span is {span!r}; expected [start, end], in characters of the source"
            )
        span = tuple(span)
    source = row.get("source") or file
    metadata = metadata | {name: row[name] for name in others}
    metadata |= {FILE_TOO: file} if FILE in metadata else {FILE: file} if source != file else {}
    number = re.search(r"\d+$", where)
    name = (
        f"{file}:{number[0] if number else 1}"
        if row.get(id_field) in (None, "")
        else str(row[id_field])
    )
    values = {key: _string(value) for key, value in metadata.items() if value is not None}
    title, time, access = (row.get(key) or "" for key in ("title", "time", "access"))
    if not isinstance(time, str):  # a table's date or year
        time = time.isoformat() if hasattr(time, "isoformat") else str(time)
    check_passages(
        [
            Passage(
                name,
                "cut and checked later",
                title,
                source,
                values,
                span,
                time,
                tuple(tags),
                access,
            )
        ]
    )
    check_unicode("its text", row[field])
    return Document(
        name, row[field], where, title, source, time, values, tuple(tags), access, span, whole=True
    )


def _string(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
