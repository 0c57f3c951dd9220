"""Statistics of one version of a memory."""

from collections import Counter
from pathlib import Path

from retrieval.store.locations import TABLE, bytes_in, index_folder
from retrieval.store.store import Store


def figures(store: Store) -> dict:
    """Return counts by tag and access group, encoder and bytes on disk, as plain values."""
    table = store.columns(["text", "source", "tags", "access"]).to_pydict()
    commits = store.log()
    folders = {"index_bytes": index_folder(store.path)} | (
        {"table_bytes": store.path / TABLE} if isinstance(store.path, Path) else {}
    )
    sizes = {name: bytes_in(folder) for name, folder in folders.items()}
    return {
        "version": store.version,
        "passages": len(store),
        "commits": len(commits),
        "created": commits[0].time,
        "changed": commits[-1].time,
        "characters": sum(map(len, table["text"])),
        "sources": len(set(table["source"])),
        "tags": dict(Counter(tag for tags in table["tags"] for tag in tags or ()).most_common()),
        "access": dict(Counter(group or "" for group in table["access"]).most_common()),
        "encoder": store.fingerprint,
        "encoder_source": store.encoder_source,
        "dim": store.dim,
        **sizes,
    }
