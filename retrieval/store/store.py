"""Store: passages, their vectors and their history in one Lance table.

Every change is one Lance commit, so a process killed at any moment leaves the table before or after
it. The commit's own transaction records author, action and reason (`transaction_properties`), so
data and record cannot disagree. Nothing is overwritten: an older version is read by its number, and
undo is a new commit that restores an older one.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.commit import CommitConflictError

from retrieval.errors import Overtaken, RetrievalError, in_words
from retrieval.passages import Commit, Passage, check_passages, listed, some
from retrieval.store import checksums
from retrieval.store.conflicts import exchange, exclusive
from retrieval.store.history import RECORD, REEMBED, properties
from retrieval.store.locations import check_free, place_of, recover, table_uri, writers_lock
from retrieval.store.rows import (
    FIELDS,
    FORMAT,
    SETTINGS,
    ids_table,
    passage_of,
    settings_of,
    table_of,
    table_schema,
    upgrade,
)
from retrieval.store.table_version import TableVersion
from retrieval.store.upkeep import tidied
from retrieval.store.versions import check_same, check_versions, open_newest

logger = logging.getLogger(__name__)

ATTEMPTS = 20  # at a commit on an object store, where writers hold no lock


class Store(TableVersion):
    """One version of a memory's table, and the changes that make the next.

    Writing moves this handle to the version it wrote; `latest` moves it to the newest.
    """

    @classmethod
    def create(cls, path, dim: int, fingerprint: str, encoder_source: str = "") -> "Store":
        """Create an empty store of float16 [dim] vectors.

        path: a folder that is new, empty or left by an interrupted create; or a URI.
        """
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

    def is_behind(self) -> bool:
        """Whether another process has written since; always False for a read-only handle."""
        if self.read_only:
            return False
        if not isinstance(self.path, Path):
            return self._dataset.latest_version != self.version
        check_same(self.path, self._identity)
        table = table_uri(self.path)  # two look-ups; Lance would list all versions
        own, following = (
            os.path.exists(f"{table}/{checksums.manifest_of(version)}")
            for version in (self.version, self.version + 1)
        )
        return following or not own

    def latest(self) -> bool:
        """Move to the newest version; return whether the handle moved.

        A read-only handle stays.
        """
        moved = self.is_behind()
        if moved:
            newest = open_newest(self.path)
            encoder, source, _ = settings_of(newest, self.path)
            if encoder != self.fingerprint:
                raise RetrievalError(
                    f"{self.path} was re-encoded since it was opened here, now with {encoder} "
                    f"{source}: open it again with that encoder"
                )
            self._move(newest)
        return moved

    def _move(self, dataset: lance.LanceDataset) -> None:
        self._dataset = self.history.dataset = dataset

    # Writing: each method makes one commit, holding the folder's lock.

    def add(
        self,
        passages: Sequence[Passage],
        vectors: np.ndarray,
        author: str | None = None,
        reason: str = "",
    ) -> Commit:
        """Add new passages with their vectors [N, dim].

        Raises RetrievalError when an id exists.
        """
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
        self,
        passages: Sequence[Passage],
        vectors: np.ndarray,
        author: str | None = None,
        reason: str = "",
        made_from: int | None = None,
    ) -> Commit:
        """Replace passages by those of the same ids.

        made_from: the version that wrote the passages being replaced; raises Overtaken if another
        one did. Raises RetrievalError when an id does not exist.
        """
        passages = some(check_passages(passages), "passages")

        def change() -> Commit:
            condition = None if made_from is None else f"target.version = {made_from}"
            merge = self._dataset.merge_insert("id").when_matched_update_all(condition)
            transaction, done = merge.execute_uncommitted(
                table_of(passages, vectors, self.dim, [self.version + 1] * len(passages))
            )
            if done["num_updated_rows"] != len(passages):  # checking before would double the time
                ids = [passage.id for passage in passages]
                self.check_known(ids)
                raise Overtaken(
                    f"another writer changed {listed(ids)} meanwhile: nothing was changed; try "
                    "again"
                )
            return self._commit(
                transaction, "edit", [p.id for p in passages], author, reason, undo_to=self.version
            )

        return self._write(change)

    def delete(self, ids: Sequence[str], author: str | None = None, reason: str = "") -> Commit:
        """Delete passages from the newest version; older versions keep them.

        Raises RetrievalError when an id does not exist.
        """
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
        """Restore the state before the latest change not yet undone, as a new commit.

        Each record names the version that undoing it restores (`undo_to`). An undo copies `undo_to`
        from the version it restores, so a second undo goes one change further back. Raises
        RetrievalError when nothing is left to undo.
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
        self,
        vectors_of: Callable[[list[Passage]], np.ndarray],
        dim: int,
        fingerprint: str,
        encoder_source: str,
        author: str | None = None,
        reason: str = "",
    ) -> Commit:
        """Replace all vectors by those of another encoder, in one commit.

        vectors_of: passages -> [N, dim]. Older versions keep their vectors and the name of their
        encoder. Undo does not go back beyond this commit.
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
                f"version {self.version} of {self.path} is a view of the past: to change the "
                "memory, open it itself"
            )

    def _write(self, change: Callable[[], Commit]) -> Commit:
        """Run `change`, which ends in `_commit`, on the newest version.

        It is retried when another writer commits first.
        """
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
        """Return the rows of `ids` as they were at an older version."""
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
        """Record the checksums of files written since `version`.

        before: the files of that version.
        """
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
        except RetrievalError as error:  # the change itself is committed
            logger.warning("%s", error)
