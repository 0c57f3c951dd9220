"""Store: passages, their vectors and their whole history, in one Lance table.

Every change is one Lance commit, so a process killed at any moment leaves the table before or after it. The commit's own
transaction carries who did what and why (`transaction_properties`): the data and the record cannot disagree. Nothing is
overwritten; an older version is read by its number, and undo is a new commit that restores an older one.
"""

import datetime
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.commit import CommitConflictError

from retrieval import checksums, lexical
from retrieval.conflicts import exchange, exclusive
from retrieval.errors import Overtaken, RetrievalError, in_words
from retrieval.history import RECORD, REEMBED, History, properties
from retrieval.passages import Commit, Diff, Passage, check_passages, listed, nearest, some
from retrieval.places import check_free, identity, place_of, recover, table_uri, writers_lock
from retrieval.rows import (
    FIELDS,
    FORMAT,
    SETTINGS,
    among,
    damaged_vectors,
    half_vectors,
    ids_table,
    passage_of,
    settings_of,
    sound_passage,
    table_of,
    table_schema,
    upgrade,
)
from retrieval.upkeep import tidied
from retrieval.versions import check_same, check_versions, open_newest, open_version, open_whole

logger = logging.getLogger(__name__)

ATTEMPTS = 20  # to commit where others do too and no lock can be held
AT_ONCE = 2_000  # ids asked for in one filter


class Store:
    """One version of a memory's table. Writing moves this handle to the version it wrote; `latest` moves it to the newest."""

    def __init__(self, path: Path | str, dataset: lance.LanceDataset, read_only: bool):
        self.path = path
        self.read_only = read_only
        self._identity = identity(path)
        self._dataset = dataset
        self.history = History(
            dataset, path / checksums.CHECKSUMS if isinstance(path, Path) else None
        )
        self.fingerprint, self.encoder_source, self.dim = settings_of(dataset, path)
        self._words_version, self._words_lock = (
            0,
            threading.Lock(),
        )  # what `lexical` searches, made when first asked for
        self._words_sound: set[str] = set()

    @classmethod
    def create(cls, path, dim: int, fingerprint: str, encoder_source: str = "") -> "Store":
        """An empty store of float16 [dim] vectors in the folder `path`, which must be new, empty or left by an interrupted create."""
        path = place_of(path)
        recover(path)
        check_free(path)
        if isinstance(path, Path):
            with in_words(f"{path} cannot be made"):
                path.mkdir(parents=True, exist_ok=True)
        with writers_lock(path), in_words(f"{path} could not be written"):
            check_free(path)
            if isinstance(path, Path):
                (path / checksums.CHECKSUMS).unlink(missing_ok=True)  # of a table that is gone
            schema = table_schema(dim).with_metadata(
                dict(zip(SETTINGS, (FORMAT, fingerprint, encoder_source, str(dim)), strict=True))
            )
            record = properties("create", (), None, "", None)
            dataset = lance.write_dataset(
                schema.empty_table(), table_uri(path), schema=schema, transaction_properties=record
            )
            made = cls(path, dataset, read_only=False)
            made._note_all()
        return made

    @classmethod
    def open(cls, path, version: int | str | datetime.datetime | None = None) -> "Store":
        """The newest version, or a read-only handle on an older one, by its number or by a moment (ISO 8601) when it was the newest.

        Raises RetrievalError when there is none.
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
                f"version {version!r} of {path} does not exist: expected a number from 1 to {store.version} (see the log)"
            )
        return cls(path, open_version(path, version), read_only=True)

    @property
    def version(self) -> int:
        return self._dataset.version

    def __len__(self) -> int:
        return self._dataset.count_rows()

    def is_behind(self) -> bool:
        """Whether another process has written since. A read-only handle never is."""
        if self.read_only:
            return False
        if not isinstance(self.path, Path):
            return self._dataset.latest_version != self.version
        check_same(self.path, self._identity)
        table = table_uri(
            self.path
        )  # two look-ups, where Lance would list all versions there ever were
        own, following = (
            os.path.exists(f"{table}/{checksums.manifest_of(version)}")
            for version in (self.version, self.version + 1)
        )
        return following or not own

    def latest(self) -> bool:
        """Moves to the newest version, which another process may have written; True when it moved. A read-only handle stays."""
        moved = self.is_behind()
        if moved:
            newest = open_newest(self.path)
            encoder, source, _ = settings_of(newest, self.path)
            if encoder != self.fingerprint:
                raise RetrievalError(
                    f"{self.path} was re-encoded since it was opened here, now with {encoder} {source}: open it again with that encoder"
                )
            self._move(newest)
        return moved

    def _move(self, dataset: lance.LanceDataset) -> None:
        self._dataset = self.history.dataset = dataset

    # Reading

    def columns(self, names: Sequence[str], ids: Iterable[str] | None = None) -> pa.Table:
        """Columns of this version, whole or for those of `ids` that exist: id, text, title, source, metadata, span_start, span_end,
        time, tags, access, origin, vector, content_hash, version. Where a format-1 memory has none yet, a column is all null, which stands
        for the default."""
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
        """Those of `ids` that are in the store."""
        return set(self._select(set(ids), ["id"])["id"].to_pylist())

    def get(self, ids: Iterable[str]) -> dict[str, tuple[Passage, int]]:
        """id -> (passage, the version that wrote it), for those of `ids` that exist.

        Raises RetrievalError when a stored passage no longer matches the hash written with it.
        """
        found = {}
        for row in self._select(set(ids), [*FIELDS, "version", "content_hash"]).to_pylist():
            passage = sound_passage(row)
            if passage is None or passage.content_hash != row["content_hash"]:
                raise RetrievalError(
                    f"passage {row['id']!r} in {self.path} is damaged on disk (its content hash differs): "
                    "restore the folder from a copy, or edit the passage to write it anew"
                )
            found[row["id"]] = (passage, row["version"])
        return found

    def lexical(
        self, text: str, n: int, ids: Collection[str] | None = None
    ) -> tuple[list[str], np.ndarray]:
        """The ids of the at most n passages, of `ids` if given, that share a word with `text`, best first, and their BM25 scores."""
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
        """(float32 [N, dim], their ids), of all passages or of those of `ids` that exist."""
        table = self._select(None if ids is None else set(ids), ["id", "vector", "vector_crc"])
        damaged = damaged_vectors(table, self.dim)
        if damaged:
            raise RetrievalError(
                f"the vectors of {listed(damaged)} in {self.path} are damaged on disk (their checksums differ): "
                "restore the folder from a copy, or edit these passages to write them anew"
            )
        return half_vectors(table, self.dim).astype(np.float32), table["id"].to_pylist()

    def log(self) -> list[Commit]:
        """Every change up to this version, oldest first."""
        return self.history.log()

    def at(self, version: int | str | datetime.datetime) -> "Store":
        """A read-only handle on a version, or on that of a moment."""
        check_same(self.path, self._identity)
        return Store.open(self.path, 0 if version is None else version)  # None is no version

    def earlier(self, versions: Sequence[int]) -> Iterator["Store"]:
        """Read-only handles on versions up to this one, in a fraction of the time that each takes alone."""
        check_versions(self.path, versions)
        return (
            Store(self.path, self._dataset.checkout_version(version), read_only=True)
            for version in versions
        )

    def diff(self, a, b) -> Diff:
        """What became of the passages from version (or moment) `a` to `b`, by their content."""
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
        """The commits that touched a passage, oldest first, each with the passage as it was after it; None where it was gone."""
        commits = [commit for commit in self.log() if id in commit.ids]
        past = self.earlier([commit.version for commit in commits])
        return [
            (commit, store.get([id]).get(id, (None, 0))[0])
            for commit, store in zip(commits, past, strict=True)
        ]

    # Writing: each of these is one commit, made while holding the folder's lock.

    def add(
        self,
        passages: Sequence[Passage],
        vectors: np.ndarray,
        author: str | None = None,
        reason: str = "",
    ) -> Commit:
        """Adds new passages with their vectors [N, dim]. Raises RetrievalError when an id exists."""
        passages = some(check_passages(passages), "passages")

        def change() -> Commit:
            self.check_new(passage.id for passage in passages)
            table = table_of(passages, vectors, self.dim, [self.version + 1] * len(passages))
            transaction = lance.fragment.write_fragments(
                table, self._dataset, mode="append", return_transaction=True
            )
            return self._commit(
                transaction, "add", [p.id for p in passages], author, reason, undo_to=self.version
            )

        return self._write(change)

    def edit(
        self, passages: Sequence[Passage], vectors: np.ndarray, author: str | None = None, reason: str = "", made_from: int | None = None
    ) -> Commit:  # fmt: skip
        """Replaces passages by those of the same ids. Raises RetrievalError when an id does not exist, and Overtaken when what is
        replaced was not written by version `made_from`, if that is given."""
        passages = some(check_passages(passages), "passages")

        def change() -> Commit:
            condition = None if made_from is None else f"target.version = {made_from}"
            merge = self._dataset.merge_insert("id").when_matched_update_all(condition)
            transaction, done = merge.execute_uncommitted(
                table_of(passages, vectors, self.dim, [self.version + 1] * len(passages))
            )
            if done["num_updated_rows"] != len(passages):  # asking first would take as long again
                ids = [passage.id for passage in passages]
                self.check_known(ids)
                raise Overtaken(
                    f"another writer changed {listed(ids)} meanwhile: nothing was changed; try again"
                )
            return self._commit(
                transaction, "edit", [p.id for p in passages], author, reason, undo_to=self.version
            )

        return self._write(change)

    def delete(self, ids: Sequence[str], author: str | None = None, reason: str = "") -> Commit:
        """Removes passages from the newest version; older versions keep them. Raises RetrievalError when an id does not exist."""
        ids = some(list(dict.fromkeys([ids] if isinstance(ids, str) else ids)), "ids")

        def change() -> Commit:
            transaction, done = (
                self._dataset.merge_insert("id")
                .when_matched_delete()
                .execute_uncommitted(ids_table(ids))
            )
            if done["num_deleted_rows"] != len(ids):
                self.check_known(ids)
            return self._commit(transaction, "delete", ids, author, reason, undo_to=self.version)

        return self._write(change)

    def undo(self, author: str | None = None, reason: str = "") -> Commit:
        """Restores the state before the latest change that is not yet undone, as a new commit.

        Each record names the version its undo restores. An undo takes that name over from the version it restores, so
        that a second undo goes one change further back. Raises RetrievalError when nothing is left to undo.
        """

        def change() -> Commit:
            newest = self.history.state(self.version)
            if newest.undo_to is None:
                why = (
                    f" since version {newest.commit.version}, which changed the encoder"
                    if newest.commit.action == REEMBED
                    else ""
                )
                raise RetrievalError(f"{self.path} has no change left to undo{why}")
            target = self.history.state(newest.undo_to)
            undone = self.history.first_after(newest.undo_to)
            check_versions(self.path, [newest.undo_to])
            transaction = lance.Transaction(
                self.version, lance.LanceOperation.Restore(newest.undo_to)
            )
            if not isinstance(self.path, Path):
                transaction = exchange(
                    self._dataset, ids_table(undone.ids), self._rows_at(newest.undo_to, undone.ids)
                )
            why = reason or f"undo of version {undone.version} ({undone.action})"
            return self._commit(
                transaction, "undo", undone.ids, author, why, undo_to=target.undo_to
            )

        return self._write(change)

    def reembed(
        self, vectors_of: Callable[[list[Passage]], np.ndarray], dim: int, fingerprint: str, encoder_source: str,
        author: str | None = None, reason: str = "",
    ) -> Commit:  # fmt: skip
        """Replaces all vectors by those of another encoder, in one commit. vectors_of: passages -> [N, dim].

        Older versions keep their vectors and the name of their encoder; undo does not go back beyond this.
        """

        def change() -> Commit:
            versions = self._select(None, ["version"])["version"].to_pylist()
            passages = [passage_of(row) for row in self._select(None, list(FIELDS)).to_pylist()]
            settings = dict(
                zip(SETTINGS, (FORMAT, fingerprint, encoder_source, str(dim)), strict=True)
            )
            table = table_of(passages, vectors_of(passages), dim, versions).replace_schema_metadata(
                settings
            )
            uri = table_uri(self.path)
            transaction = lance.fragment.write_fragments(
                table, uri, mode="overwrite", return_transaction=True
            )
            commit = self._commit(transaction, REEMBED, [], author, reason, undo_to=None)
            self.fingerprint, self.encoder_source, self.dim = fingerprint, encoder_source, dim
            return commit

        return self._write(change)

    def check_writable(self) -> None:
        if self.read_only:
            raise RetrievalError(
                f"version {self.version} of {self.path} is a view of the past: to change the memory, open it itself"
            )

    def check_new(self, ids: Iterable[str]) -> None:
        """Raises RetrievalError listing those of `ids` that are in the store."""
        known = self.existing(ids)
        if known:
            raise RetrievalError(
                f"already in the memory: {listed(sorted(known))}: use edit to change a passage, or give the new one another id"
            )

    def check_known(self, ids: Iterable[str]) -> None:
        """Raises RetrievalError listing those of `ids` that are not in the store."""
        ids = set(ids)
        if unknown := ids - self.existing(ids):
            close = nearest(min(unknown), self.ids())
            raise RetrievalError(
                f"not in the memory: {listed(sorted(unknown))}{close}: nothing was changed; add a passage before"
            )

    def _write(self, change: Callable[[], Commit]) -> Commit:
        """Makes a change that ends in `_commit`, on the newest version. Where another writer was faster, it is prepared anew."""
        self.check_writable()
        with writers_lock(self.path):
            with in_words(f"{self.path} could not be written: nothing was changed"):
                for attempt in range(ATTEMPTS):
                    self.latest()
                    try:
                        if (upgraded := upgrade(self._dataset, self.dim)) is not None:
                            self._move(upgraded)
                        self._note_all()
                        done = change()
                        break
                    except CommitConflictError:
                        if attempt == ATTEMPTS - 1:
                            raise
                        time.sleep(random.uniform(0, 0.1 * (attempt + 1)))
            self._tidy()
            return done

    def _rows_at(self, version: int, ids: Sequence[str]) -> pa.Table:
        """Those of `ids` that were there at an older version, as they were."""
        past = Store.open(self.path, version)
        found, (vectors, order) = past.get(ids), past.vectors(ids)
        return table_of(
            [found[id][0] for id in order], vectors, self.dim, [found[id][1] for id in order]
        )

    def _note_all(self) -> None:
        if isinstance(self.path, Path):
            checksums.catch_up(Path(table_uri(self.path)), self.version)

    def _commit(
        self,
        transaction,
        action: str,
        ids: Sequence[str],
        author: str | None,
        reason: str,
        undo_to: int | None,
    ) -> Commit:
        before, dataset = checksums.files_of(self._dataset), self._dataset
        if not isinstance(self.path, Path):
            exclusive(transaction, dataset)
        transaction.transaction_properties = properties(action, ids, author, reason, undo_to)
        self._move(lance.LanceDataset.commit(dataset, transaction, max_retries=0))
        record = transaction.transaction_properties[RECORD]
        self._note(before, self.version - 1, transaction.uuid, record)
        return self.history.learn(self.version, record)

    def _note(
        self, before: set[str], version: int, uuid: str = "*", record: str | None = None
    ) -> None:
        """Notes the checksums of what was written since `version`, which had the files `before`."""
        if isinstance(self.path, Path):
            names = checksums.new_files(self._dataset, before, version, uuid)
            checksums.note(Path(table_uri(self.path)), version, self.version, names, record)

    def _tidy(self) -> None:
        try:
            with in_words(f"{self.path}: upkeep failed and will be tried again at the next change"):
                before, version = checksums.files_of(self._dataset), self.version
                if (
                    newer := tidied(self._dataset, indexed=isinstance(self.path, Path))
                ) is not None:
                    self._move(newer)
                    self._note(before, version)
        except RetrievalError as error:  # the change before is committed
            logger.warning("%s", error)

    def _select(self, ids: set[str] | None, columns: list[str]) -> pa.Table:
        """Columns of the rows of `ids` (None: all), those that this version lacks all null."""
        known, there = table_schema(self.dim), set(self._dataset.schema.names)
        schema, here = (
            pa.schema([known.field(name) for name in columns]),
            [name for name in columns if name in there],
        )
        if ids is not None and len(ids) > max(
            AT_ONCE, len(self) / 4
        ):  # reading everything is faster
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
