"""Reading a memory's table: passages, vectors, columns and word search at any version."""

import datetime
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.errors import RetrievalError, in_words
from retrieval.passages import Commit, Diff, Passage, listed, nearest
from retrieval.store import checksums, lexical
from retrieval.store.history import History
from retrieval.store.locations import identity, place_of, table_uri
from retrieval.store.rows import (
    FIELDS,
    among,
    damaged_vectors,
    half_vectors,
    settings_of,
    sound_passage,
    table_schema,
)
from retrieval.store.versions import check_same, check_versions, open_version, open_whole

AT_ONCE = 2_000  # ids in one filter expression


class TableVersion:
    """One version of the table of the memory at `path`."""

    def __init__(self, path: Path | str, dataset: lance.LanceDataset, read_only: bool):
        self.path = path
        self.read_only = read_only
        self._identity = identity(path)
        self._dataset = dataset
        self.history = History(
            dataset, path / checksums.CHECKSUMS if isinstance(path, Path) else None
        )
        self.fingerprint, self.encoder_source, self.dim = settings_of(dataset, path)
        self._words_version, self._words_lock = 0, threading.Lock()  # `lexical` fills _words lazily
        self._words_sound: set[str] = set()

    @classmethod
    def open(cls, path, version: int | str | datetime.datetime | None = None) -> Self:
        """Open the newest version, or an older one read-only.

        version: a number, or a time (ISO 8601) at which it was the newest. Raises RetrievalError
        when there is none.
        """
        path = place_of(path)
        newest, here = open_whole(path)
        store = cls(path, newest, read_only=version is not None)
        store._identity = here
        if version is None:
            return store
        if isinstance(version, str | datetime.datetime):
            version = store.history.at(version)
        if (
            isinstance(version, bool)
            or not isinstance(version, int)
            or not 1 <= version <= store.version
        ):
            raise RetrievalError(
                f"version {version!r} of {path} does not exist: expected a number from 1 to "
                f"{store.version} (see the log)"
            )
        return cls(path, open_version(path, version), read_only=True)

    @property
    def version(self) -> int:
        return self._dataset.version

    def __len__(self) -> int:
        return self._dataset.count_rows()

    def columns(self, names: Sequence[str], ids: Iterable[str] | None = None) -> pa.Table:
        """Return columns of all rows, or of those of `ids` that exist.

        names: id, text, title, source, metadata, span_start, span_end, time, tags, access, origin,
        vector, content_hash, version. A column that a format-1 memory lacks is all null, which
        stands for the default.
        """
        known = table_schema(self.dim)
        unknown = [name for name in names if name not in known.names]
        if unknown:
            raise RetrievalError(
                f"a memory has no columns {listed(unknown)}; it has {', '.join(known.names)}"
            )
        return self._select(None if ids is None else set(ids), list(names))

    def ids(self) -> list[str]:
        return self.columns(["id"])["id"].to_pylist()

    def existing(self, ids: Iterable[str]) -> set[str]:
        """Return those of `ids` that are in the store."""
        return set(self._select(set(ids), ["id"])["id"].to_pylist())

    def get(self, ids: Iterable[str]) -> dict[str, tuple[Passage, int]]:
        """Return id -> (passage, version that wrote it), for those of `ids` that exist.

        Raises RetrievalError when a stored passage does not match its content hash.
        """
        found = {}
        for row in self._select(set(ids), [*FIELDS, "version", "content_hash"]).to_pylist():
            passage = sound_passage(row)
            if passage is None or passage.content_hash != row["content_hash"]:
                raise RetrievalError(
                    f"passage {row['id']!r} in {self.path} is damaged on disk (its content hash "
                    "differs): restore the folder from a copy, or edit the passage to write it "
                    "anew"
                )
            found[row["id"]] = (passage, row["version"])
        return found

    def lexical(
        self, text: str, n: int, ids: Collection[str] | None = None
    ) -> tuple[list[str], np.ndarray]:
        """Return the ids of at most n passages that share a word with `text`, and BM25 scores.

        Best first; among `ids` if given.
        """
        with in_words(
            f"{table_uri(self.path)} cannot be searched by words; `verify` says what is damaged"
        ):
            with self._words_lock:
                if self._words_version != self.version:
                    self._words, self._words_version = (
                        lexical.searchable(self._dataset, self._words_sound),
                        self.version,
                    )
            return lexical.search(self._words, text, n, None if ids is None else among(ids))

    def vectors(self, ids: Iterable[str] | None = None) -> tuple[np.ndarray, list[str]]:
        """Return (float32 [N, dim], ids) of all passages, or of those of `ids` that exist."""
        table = self._select(None if ids is None else set(ids), ["id", "vector", "vector_crc"])
        damaged = damaged_vectors(table, self.dim)
        if damaged:
            raise RetrievalError(
                f"the vectors of {listed(damaged)} in {self.path} are damaged on disk (their "
                "checksums differ): restore the folder from a copy, or edit these passages to "
                "write them anew"
            )
        return half_vectors(table, self.dim).astype(np.float32), table["id"].to_pylist()

    def log(self) -> list[Commit]:
        """Return every change up to this version, oldest first."""
        return self.history.log()

    def at(self, version: int | str | datetime.datetime) -> Self:
        """Return a read-only handle on a version, or on the newest one at a time."""
        check_same(self.path, self._identity)
        return self.open(self.path, 0 if version is None else version)  # 0 raises

    def earlier(self, versions: Sequence[int]) -> Iterator[Self]:
        """Yield read-only handles on versions up to this one, much faster than `at` for each."""
        check_versions(self.path, versions)
        return (
            type(self)(self.path, self._dataset.checkout_version(version), read_only=True)
            for version in versions
        )

    def diff(self, a, b) -> Diff:
        """Compare the passages of two versions (or times) by their content hashes."""
        first, second = self.at(a), self.at(b)
        early, late = sorted((first, second), key=lambda store: store.version)
        touched = late.history.touched_since(early.version)
        old, new = (
            dict(
                zip(
                    *store._select(touched, ["id", "content_hash"]).to_pydict().values(),
                    strict=True,
                )
            )
            for store in (first, second)
        )
        edited = [id for id in old.keys() & new.keys() if old[id] != new[id]]
        return Diff(
            *(
                tuple(sorted(ids))
                for ids in (new.keys() - old.keys(), edited, old.keys() - new.keys())
            )
        )

    def past_of(self, id: str) -> list[tuple[Commit, Passage | None]]:
        """Return the commits that touched a passage, oldest first, with the passage after each.

        The passage is None where it was deleted.
        """
        commits = [commit for commit in self.log() if id in commit.ids]
        past = self.earlier([commit.version for commit in commits])
        return [
            (commit, store.get([id]).get(id, (None, 0))[0])
            for commit, store in zip(commits, past, strict=True)
        ]

    def check_new(self, ids: Iterable[str]) -> None:
        """Raise RetrievalError listing those of `ids` that are in the store."""
        known = self.existing(ids)
        if known:
            raise RetrievalError(
                f"already in the memory: {listed(sorted(known))}: use edit to change a passage, "
                "or give the new one another id"
            )

    def check_known(self, ids: Iterable[str]) -> None:
        """Raise RetrievalError listing those of `ids` that are not in the store."""
        ids = set(ids)
        if unknown := ids - self.existing(ids):
            close = nearest(min(unknown), self.ids())
            raise RetrievalError(
                f"not in the memory: {listed(sorted(unknown))}{close}: nothing was changed; add "
                "a passage before"
            )

    def _select(self, ids: set[str] | None, columns: list[str]) -> pa.Table:
        """Return columns of the rows of `ids` (None: all); a column this version lacks is null."""
        known, there = table_schema(self.dim), set(self._dataset.schema.names)
        schema = pa.schema([known.field(name) for name in columns])
        here = [name for name in columns if name in there]
        # Above a quarter of the rows, a full read is faster than look-ups.
        if ids is not None and len(ids) > max(AT_ONCE, len(self) / 4):
            table = self._select(None, list(dict.fromkeys(["id", *columns])))
            return table.filter(pc.field("id").isin(list(ids))).select(columns)
        names = sorted(ids or ())
        parts = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
        filters = [None] if ids is None else [among(part) for part in parts]
        with in_words(f"{table_uri(self.path)} cannot be read; `verify` says what is damaged"):
            tables = [self._dataset.to_table(columns=here, filter=filter) for filter in filters]
        return pa.concat_tables([schema.empty_table(), *tables], promote_options="default").select(
            columns
        )
