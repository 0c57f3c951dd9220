"""Lexical search: BM25 (Robertson & Zaragoza 2009, section 3.2; k1 = 1.2, b = 0.75) in Lance.

The full-text index is part of the table: every version has its own, and undo restores the old one.
Rows that are not indexed yet are read and scored with the rest. Versions without an index (small or
old ones) are indexed in memory.

The column `terms` holds the output of `retrieval.store.words.words`, which Lance splits at spaces
and stems as English; there are no stop words. A change of that normalisation needs a new column
name: a table without the column is searched in memory until its next change.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.query import MatchQuery

from retrieval.passages import titled
from retrieval.store import checksums
from retrieval.store.words import asked, words

logger = logging.getLogger(__name__)

WORDS, INDEX = "terms", "terms_idx"  # the searched column (words of title and text), its index
OLD_WORDS = "words"  # the searched column of format 2: title and text as they are
WORDS_SCHEMA = pa.schema([(WORDS, pa.string())])
KEPT_FROM = 500  # rows; below, indexing a copy in memory is as fast as a change to the table
MOST_WORDS = 4096  # of a query: Lance takes 16 KB each and aborts when memory runs out
LATE = 128  # unindexed rows that trigger upkeep; each costs a search some microseconds
OPTIONS: dict[str, Any] = dict(
    base_tokenizer="whitespace",
    max_token_length=None,
    language="English",
    stem=True,
    remove_stop_words=False,
    ascii_folding=True,
    with_position=False,
)


def search(
    dataset: lance.LanceDataset, text: str, n: int, ids: str | None = None
) -> tuple[list[str], np.ndarray]:
    """Return the ids of at most n rows that share a word with `text`, and BM25 scores, float32.

    dataset: from `searchable`. Best first. ids: an SQL condition on the rows, applied before
    ranking. Statistics are of the whole table: deleted and replaced rows count until their part of
    the index is rewritten; rows added since do not. Only the first words of a long text count.
    """
    text, n = (
        " ".join(asked(text)[:MOST_WORDS])[: 8 * MOST_WORDS],
        min(n, max(1, dataset.count_rows())),
    )
    found = dataset.to_table(
        columns=["id", "_score"],
        full_text_query=MatchQuery(text, WORDS),
        limit=n,
        filter=ids,
        prefilter=ids is not None,
    )
    ids_, scores = found["id"].to_pylist(), found["_score"].to_numpy().astype(np.float32)
    order = sorted(range(len(ids_)), key=lambda i: (-scores[i], ids_[i]))
    return [ids_[i] for i in order], scores[order]


def searchable(dataset: lance.LanceDataset, sound: set[str]) -> lance.LanceDataset:
    """Return the table if its word index is sound, else an indexed copy of its words in memory.

    sound: folders of the index whose checksums were verified before; updated here.
    """
    folders = _folders(dataset)
    damaged = checksums.damaged_in(Path(dataset.uri), folders - sound)
    if folders and not damaged:
        sound |= folders
        return dataset
    if damaged:
        logger.warning(
            "%s: a copy of the words is indexed in memory; once some passages have changed the "
            "index is made anew",
            damaged[0],
        )
    elif WORDS not in dataset.schema.names and dataset.count_rows() >= KEPT_FROM:
        logger.warning(
            "%s: its word index is of an older format; until its next change a copy is indexed "
            "in memory",
            dataset.uri,
        )
    rows = dataset.to_table(columns=["id", "title", "text"]).combine_chunks()
    batches = [with_words(part) for part in rows.to_batches()]
    copy = lance.write_dataset(
        pa.Table.from_batches(batches, WORDS_SCHEMA).append_column("id", rows["id"]),
        "memory://words",
    )
    copy.create_scalar_index(WORDS, "INVERTED", name=INDEX, **OPTIONS)
    return copy


def with_words(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Compute the searched column from the columns title and text."""
    pairs = zip(rows["title"].to_pylist(), rows["text"].to_pylist(), strict=True)
    return pa.record_batch(
        {WORDS: pa.array([terms(titled(title, text)) for title, text in pairs], pa.string())}
    )


def terms(searchable: str) -> str:
    """Return the searched column's value: the words of a `Passage.searchable`, joined by spaces."""
    return " ".join(words(searchable))


def indexes(dataset: lance.LanceDataset) -> set[str]:
    return {index.name for index in dataset.describe_indices()}


def _folders(dataset: lance.LanceDataset) -> set[str]:
    """Return the folders of the word index, relative to the table."""
    return {
        f"_indices/{part.uuid}"
        for index in dataset.describe_indices()
        if index.name == INDEX
        for part in index.segments
    }


def due(dataset: lance.LanceDataset, names: set[str]) -> bool:
    """Whether `upkeep` has work: KEPT_FROM rows without an index, or LATE unindexed rows.

    names: of the table's indexes.
    """
    if WORDS not in dataset.schema.names:
        return False  # restored from an older format; the next change adds the column
    if INDEX in names:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # a damaged index
            return dataset.stats.index_stats(INDEX)["num_unindexed_rows"] >= LATE
        return True
    return dataset.count_rows() >= KEPT_FROM


def upkeep(dataset: lance.LanceDataset) -> None:
    """Create the word index, or add new rows to it, if due.

    New rows become a part of their own, merged with the preceding parts of at most twice its size.
    So a row is rewritten a few times over its life, and no change waits for the whole index. A
    damaged index is rebuilt.
    """
    names = indexes(dataset)
    if not due(dataset, names):
        return
    if INDEX not in names or checksums.damaged_in(Path(dataset.uri), _folders(dataset)):
        dataset.create_scalar_index(WORDS, "INVERTED", name=INDEX, **OPTIONS)
        return
    stats = dataset.stats.index_stats(INDEX)
    size, merged = stats["num_unindexed_rows"], 0
    for part in reversed(stats["num_indexed_rows_per_delta"]):
        if part > 2 * size:
            break
        size, merged = size + part, merged + 1
    dataset.optimize.optimize_indices(num_indices_to_merge=merged, index_names=[INDEX])
