"""Conversion between passages, their vectors and checksums and the rows of a Lance table."""

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.schema import LanceSchema

from retrieval.errors import RetrievalError, in_words
from retrieval.passages import Passage
from retrieval.store.lexical import OLD_WORDS, WORDS, terms, with_words
from retrieval.store.locations import table_uri

# Format 1 lacked span, time, tags, access and vector_crc; early format 2 origin; 2 terms.
# The next change to a memory upgrades its table.
FORMAT = "3"
# Keys of the schema's metadata.
SETTINGS = ("openbook.format", "openbook.encoder", "openbook.encoder_source", "openbook.dim")
# Columns that hold the fields of a Passage.
FIELDS = (
    "id",
    "text",
    "title",
    "source",
    "metadata",
    "span_start",
    "span_end",
    "time",
    "tags",
    "access",
    "origin",
)


def table_schema(dim: int) -> pa.Schema:
    """Return the columns of the table.

    Columns that format 1 did not have are nullable. Null stands for the default; in `origin` it
    means unknown.
    """
    text = [
        pa.field(name, pa.string(), nullable=False)
        for name in ("id", "text", "title", "source", "metadata")
    ]
    place = [pa.field("span_start", pa.int64()), pa.field("span_end", pa.int64())]
    rights = [
        pa.field("time", pa.string()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("access", pa.string()),
        pa.field("origin", pa.string()),
    ]
    vector = [
        pa.field("vector", pa.list_(pa.float16(), dim), nullable=False),
        pa.field("vector_crc", pa.int64()),
    ]
    words = [pa.field(WORDS, pa.string())]
    made = [
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
    ]
    return pa.schema([*text, *place, *rights, *words, *vector, *made])


def upgrade(dataset: lance.LanceDataset, dim: int) -> lance.LanceDataset | None:
    """Add the columns that an older table lacks, and set its format.

    Returns the new version, or None for a current table. The new columns are null, except the
    words, which are computed. No existing data is rewritten.
    """
    lacking = [field for field in table_schema(dim) if field.name not in dataset.schema.names]
    if not lacking:
        return None
    if new := [field for field in lacking if field.name != WORDS]:
        schema = pa.schema([*dataset.schema, *new], dataset.schema.metadata)
        fragments = [fragment.metadata for fragment in dataset.get_fragments()]
        merge = lance.LanceOperation.Merge(fragments, LanceSchema.from_pyarrow(schema))
        dataset = lance.LanceDataset.commit(
            dataset, lance.Transaction(dataset.version, merge), max_retries=0
        )
    dataset = lance.dataset(
        dataset.uri
    )  # changing columns modifies the handle, which readers share
    dataset.update_schema_metadata({"openbook.format": FORMAT})
    if WORDS not in dataset.schema.names:
        dataset.add_columns(with_words, read_columns=["title", "text"])
    if OLD_WORDS in dataset.schema.names:
        dataset.drop_columns([OLD_WORDS])
    return dataset


def passage_of(row: dict) -> Passage:
    span = None if row["span_start"] is None else (row["span_start"], row["span_end"])
    metadata, tags = json.loads(row["metadata"]), tuple(row["tags"] or ())
    text = (row["id"], row["text"], row["title"], row["source"])
    return Passage(
        *text, metadata, span, row["time"] or "", tags, row["access"] or "", row["origin"]
    )


def sound_passage(row: dict) -> Passage | None:
    """Return the passage of a row; None if the stored values are not valid."""
    try:
        return passage_of(row)
    except (ValueError, TypeError, AttributeError):
        return None


def table_of(
    passages: Sequence[Passage], vectors: np.ndarray, dim: int, versions: Sequence[int]
) -> pa.Table:
    """Return rows, with the versions that wrote their texts.

    Raises RetrievalError unless vectors are finite and of shape [len(passages), dim].
    """
    vectors = np.asarray(vectors)
    if vectors.shape != (len(passages), dim):
        raise RetrievalError(
            f"vectors have shape {list(vectors.shape)}; expected [{len(passages)}, {dim}], a row "
            "for each passage"
        )
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(vectors, np.float16)
    if not np.isfinite(half).all():
        raise RetrievalError(
            "a vector holds NaN or infinity, or a value that float16 has not: check the encoder"
        )
    columns = {
        "id": [p.id for p in passages],
        "text": [p.text for p in passages],
        "title": [p.title for p in passages],
        "source": [p.source for p in passages],
        "metadata": [json.dumps(p.metadata, sort_keys=True, ensure_ascii=False) for p in passages],
        "span_start": [p.span and p.span[0] for p in passages],
        "span_end": [p.span and p.span[1] for p in passages],
        "time": [p.time for p in passages],
        "tags": [list(p.tags) for p in passages],
        "access": [p.access for p in passages],
        "origin": [p.origin for p in passages],
        WORDS: [terms(p.searchable) for p in passages],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(half.ravel()), dim),
        "vector_crc": [zlib.crc32(row) for row in half],
        "content_hash": [p.content_hash for p in passages],
        "version": versions,
    }
    return pa.table(columns, schema=table_schema(dim))


def ids_table(ids: Sequence[str]) -> pa.Table:
    """Return a table with the id column only, to match rows by."""
    return pa.table(
        [pa.array(ids, pa.string())],
        schema=pa.schema([pa.field("id", pa.string(), nullable=False)]),
    )


def half_vectors(table: pa.Table, dim: int) -> np.ndarray:
    """Return the vector column as float16 [N, dim]."""
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["vector"].chunks]
    return np.concatenate(flat or [np.zeros(0, np.float16)]).reshape(-1, dim)


def damaged_vectors(table: pa.Table, dim: int) -> list[str]:
    """Return the ids whose vectors differ from their checksums.

    Rows of format 1 have no checksums and pass.
    """
    rows = zip(
        table["id"].to_pylist(),
        table["vector_crc"].to_pylist(),
        half_vectors(table, dim),
        strict=True,
    )
    return [id for id, crc, vector in rows if crc is not None and crc != zlib.crc32(vector)]


def settings_of(dataset: lance.LanceDataset, path: Path | str) -> tuple[str, str, int]:
    """Return encoder, encoder source and dim of a table.

    Raises RetrievalError for a table that Memory.create did not make, or of a newer format.
    """
    with in_words(f"{table_uri(path)} cannot be read; `verify` says what is damaged"):
        metadata = dataset.schema.metadata or {}
        found, encoder, source, dim = (
            metadata.get(name.encode(), b"").decode() for name in SETTINGS
        )
        if found not in ("1", "2", FORMAT):
            newer = found.isdecimal() and int(found) > int(FORMAT)
            remedy = "install a newer openbook" if newer else "it was not made by Memory.create"
            raise RetrievalError(
                f"{path} holds a table of format {found!r}, this openbook reads 1 to {FORMAT}: "
                f"{remedy}"
            )
        return encoder, source, int(dim)


def among(ids: Iterable[str]) -> str:
    """Return the SQL condition that a row's id is one of `ids`."""
    return "id IN ({})".format(", ".join("'" + id.replace("'", "''") + "'" for id in ids))
