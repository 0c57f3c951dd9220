"""Verifying a memory: files, passages and vectors against their checksums, and the index."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from retrieval.errors import RetrievalError
from retrieval.index.approximate import default_index
from retrieval.store import checksums
from retrieval.store.locations import index_folder, place_of, table_uri
from retrieval.store.rows import FIELDS, damaged_vectors, passage_of
from retrieval.store.store import Store


def problems(path) -> list[str]:
    """Return what is damaged in the memory at `path`, one sentence each with the remedy.

    [] when it is sound. Rows are read only if all files are sound. Files written just before a
    process was killed may have no checksum yet.
    """
    place = place_of(path)
    # An object store checks its files itself.
    table = Path(table_uri(place)) if isinstance(place, Path) else None
    found = checksums.damaged(table) if table and table.is_dir() else []
    if found and table and (table.parent / checksums.CHECKSUMS).exists():
        return found
    try:
        found += _damaged_rows(Store.open(place))
    except RetrievalError as error:
        return [*found, str(error)]
    if index_folder(place).exists():
        try:
            default_index().load(index_folder(place))
        except RetrievalError as error:
            found.append(f"{error}; it is rebuilt from the table when the memory is searched")
    return found


def _damaged_rows(store: Store) -> Iterator[str]:
    remedy = "edit it to write it anew, or restore the folder from a copy"
    table = store.columns([*FIELDS, "content_hash", "vector", "vector_crc"])
    for id in (id for id, count in Counter(table["id"].to_pylist()).items() if count > 1):
        yield f"passage {id!r} in {store.path} is there twice: delete it and add it again"
    for id in damaged_vectors(table, store.dim):
        yield f"passage {id!r} in {store.path}: its vector differs from its checksum: {remedy}"
    for batch in table.drop_columns(["vector"]).to_batches(max_chunksize=8192):
        for row in batch.to_pylist():
            if passage_of(row).content_hash != row["content_hash"]:
                yield (
                    f"passage {row['id']!r} in {store.path} differs from its content hash: {remedy}"
                )
