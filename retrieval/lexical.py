"""Search by words: BM25 (Robertson & Zaragoza 2009, section 3.2; k1 = 1.2, b = 0.75) in Lance's full-text index.

The index is part of the table: every version has its own, an undo brings the old one back, and rows that it does not hold yet are
read and scored with the rest. Versions without one (small, or written before there was any) are indexed in memory.
The column `terms` holds the output of `retrieval.words.words`, which Lance splits at spaces and stems as English; no word is left out.
A change of that normalisation needs a new column name: a table without the column is searched in memory until its next change.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.query import MatchQuery

from retrieval import checksums
from retrieval.passages import titled
from retrieval.words import asked, words

logger = logging.getLogger(__name__)

WORDS, INDEX = "terms", "terms_idx"  # the column that is searched: the words of title and text
OLD_WORDS = "words"  # the column of format 2: title and text themselves
WORDS_SCHEMA = pa.schema([(WORDS, pa.string())])
KEPT_FROM = 500  # rows; below, indexing a copy in memory takes no longer than a change to the table
MOST_WORDS = (
    4096  # of a query: Lance takes 16 KB for each, and ends the process where there is no more
)
LATE = 128  # rows that are not in the index yet; each costs a search some microseconds
OPTIONS: dict[str, Any] = dict(
    base_tokenizer="whitespace", max_token_length=None, language="English", stem=True, remove_stop_words=False, ascii_folding=True,
    with_position=False,
)  # fmt: skip


def search(
    dataset: lance.LanceDataset, text: str, n: int, ids: str | None = None
) -> tuple[list[str], np.ndarray]:
    """The ids of the at most n rows that share a word with `text`, best first, and their BM25 scores, float32. dataset: a `searchable`.

    ids: an SQL condition on the rows, applied before ranking. The statistics are those of the whole table: deleted and replaced rows
    count in them until their part of the index is written anew, rows added since then do not. Of a long text the first words count.
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
    """The table itself where its words are indexed, else, or where the index is damaged, an indexed copy of them in memory.

    sound: folders of the index that were compared with their checksums before, to which this adds.
    """
    folders = _folders(dataset)
    damaged = checksums.damaged_in(Path(dataset.uri), folders - sound)
    if folders and not damaged:
        sound |= folders
        return dataset
    if damaged:
        logger.warning(
            "%s: a copy of the words is indexed in memory; once some passages have changed the index is made anew",
            damaged[0],
        )
    elif WORDS not in dataset.schema.names and dataset.count_rows() >= KEPT_FROM:
        logger.warning(
            "%s: its word index is of an older format; until its next change a copy is indexed in memory",
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
    """The column that is searched, from the columns title and text."""
    pairs = zip(rows["title"].to_pylist(), rows["text"].to_pylist(), strict=True)
    return pa.record_batch(
        {WORDS: pa.array([terms(titled(title, text)) for title, text in pairs], pa.string())}
    )


def terms(searchable: str) -> str:
    """What the column holds of a passage's `searchable`: its words, with spaces between."""
    return " ".join(words(searchable))


def indexes(dataset: lance.LanceDataset) -> set[str]:
    return {index.name for index in dataset.describe_indices()}


def _folders(dataset: lance.LanceDataset) -> set[str]:
    """Where the parts of the index are, relative to the table."""
    return {
        f"_indices/{part.uuid}"
        for index in dataset.describe_indices()
        if index.name == INDEX
        for part in index.segments
    }


def due(dataset: lance.LanceDataset, names: set[str]) -> bool:
    """Whether `upkeep` has something to do, where indexes of these names exist: there are KEPT_FROM rows, or LATE that are new."""
    if (
        WORDS not in dataset.schema.names
    ):  # undone to a version of an older format; the next change adds it
        return False
    if INDEX in names:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # it is damaged
            return dataset.stats.index_stats(INDEX)["num_unindexed_rows"] >= LATE
        return True
    return dataset.count_rows() >= KEPT_FROM


def upkeep(dataset: lance.LanceDataset) -> None:
    """Makes the index, or brings it up to date, where that is due.

    New rows become a part of their own, merged with the parts before it that are at most twice its size: a row is written anew a
    few times over its life, and no change waits for the whole index. A damaged index is made anew.
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
