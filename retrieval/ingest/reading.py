"""Reading documents of any supported format from files, folders, globs and data sets."""

import dataclasses
import gzip
import zlib
from collections.abc import Iterator, Sequence

from lm.data.read import sources
from retrieval.errors import RetrievalError
from retrieval.ingest import rows
from retrieval.ingest.documents import Document, Report, Unusable, printable
from retrieval.ingest.files import File, find
from retrieval.ingest.formats import READERS
from retrieval.progress import chunks_with_progress

SUFFIXES = (*READERS, *rows.SUFFIXES)
BINARY = (".pdf", ".docx", ".parquet")
MAX_MEGABYTES = 100


def read(
    inputs: Sequence[str],
    report: Report,
    text_field: str | None = None,
    max_megabytes: float = MAX_MEGABYTES,
    id_field: str = "id",
) -> tuple[list[File], list[Document]]:
    """Return the files of `inputs` (see files.find) and their documents.

    The report counts what was left out, and why. Raises RetrievalError, naming the file and line,
    for more bad documents than `report.most_bad` allows, for a file above `max_megabytes` (tables,
    which are read row by row, may be larger) and for a named file without passages.
    """
    files = find(inputs, SUFFIXES, BINARY, report)
    documents: list[Document] = []
    for (file,) in chunks_with_progress(files, "reading files", chunk=1, show_from=32):
        before = report.documents
        made = (
            rows.documents(file, report, text_field, id_field)
            if is_table(file.path)
            else _document(file, report, int(max_megabytes * 1e6))
        )
        documents += (dataclasses.replace(document, origin=file.origin) for document in made)
        if report.documents == before:
            if file.path in inputs:
                raise RetrievalError(f"{file.path} holds no passages: expected at least one")
            report.skip("empty", printable(file.path))
    report.close()
    if not documents:
        left_out = [f"{reason}: {', '.join(names)}" for reason, names in report.examples.items()]
        raise RetrievalError(
            f"{', '.join(map(printable, inputs))}: no passages are left: {'; '.join(left_out)}"
        )
    return files, documents


def is_table(path: str) -> bool:
    return path.startswith(sources.SETS) or sources.kind(path) in rows.SUFFIXES


def _document(file: File, report: Report, max_bytes: int) -> Iterator[Document]:
    where = printable(file.path)
    try:
        with sources.open_bytes(file.path) as f:
            raw = f.read(max_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        report.count(where, f" is no whole gzip file ({error}): copy it again")
        return
    if len(raw) > max_bytes:
        raise RetrievalError(
            f"{where} has more than {max_bytes / 1e6:g} MB: split it, or allow more with "
            "--max-megabytes"
        )
    try:
        fields = READERS[sources.kind(file.path)](raw)
    except Unusable as error:
        report.count(where, str(error))
        return
    if fields["text"].strip():
        report.count(where)
        yield Document(file.name, where=where, source=file.name, **fields)
