"""The vector index of an open memory: loaded, brought to the store's version, rebuilt and saved."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.index.approximate import ScannIndex, default_index
from retrieval.index.exact import ExactIndex
from retrieval.index.index import Index
from retrieval.store.locations import LOCK, index_folder
from retrieval.store.locks import ReadersWriter, file_lock
from retrieval.store.store import Store

logger = logging.getLogger(__name__)

SAVE_AFTER = 0.1  # fraction of rows changed since the last save that triggers a save
REBUILD_AFTER = 0.5  # fraction of rows changed elsewhere above which rebuilding is faster


class LiveIndex:
    """The index of `store`, loaded when first needed.

    The caller holds the write lock of `lock` during `refresh`, `catch_up` and `rebuild`.
    """

    def __init__(self, store: Store, lock: ReadersWriter):
        self.index: Index | None = None
        self._store, self._lock = store, lock
        self._version = 0
        self._unsaved: set[str] = set()  # ids changed since the index was saved

    def is_current(self) -> bool:
        """Whether the index is loaded and at the store's version."""
        return self.index is not None and self._version == self._store.version

    def refresh(self) -> None:
        """Load the index if it is not loaded, and bring it to the store's version."""
        if self.index is None:
            self._load()
        else:  # a change was interrupted between its commit and the index update
            self.catch_up()

    def catch_up(self, written: Mapping[str, np.ndarray] = MappingProxyType({})) -> None:
        """Bring the index, if it is loaded, to the store's version; rebuild where that is faster.

        written: id -> vector of the newest commit. They are not read again if nothing else changed.
        """
        if self.index is None:
            return
        changed = self._store.history.changed_since(self._version)
        if changed is None or len(changed) > 1000 + REBUILD_AFTER * len(self.index):
            self.rebuild()
            return
        if written and changed == written.keys():
            ids = list(written)  # rounded as in the table: a rebuilt index gives the same scores
            vectors = np.array(list(written.values()), np.float16).astype(np.float32)
        else:
            vectors, ids = self._store.vectors(changed)
        try:
            self.index.delete([id for id in changed.difference(ids) if id in self.index])
            self.index.upsert(vectors, ids)
        except (RetrievalError, RuntimeError) as error:
            logger.warning(
                "the index of %s could not be changed (%s); it is rebuilt from the store",
                self._store.path,
                error,
            )
            self.rebuild()
            return
        self._version = self._store.version
        self._unsaved |= changed
        if len(self._unsaved) > 200 + SAVE_AFTER * len(self.index):
            self.save()

    def rebuild(self) -> None:
        """Build the index from the store's vectors and save it."""
        self.index = self._saved_when_trained(default_index().build(*self._store.vectors()))
        self._version = self._store.version
        self.save()

    def save(self) -> None:
        """Write the index beside the table; a failure is logged, not raised."""
        assert self.index is not None
        folder = index_folder(self._store.path)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(folder.parent / LOCK):
                facts = {
                    "store_version": self._version,
                    "state": self._store.history.tag(self._version),
                }
                self.index.save(folder, fingerprint=self._store.fingerprint, **facts)
        except (OSError, RuntimeError, RetrievalError) as error:  # such as a read-only disk
            logger.warning(
                "the index of %s could not be saved (%s); it will be rebuilt when the memory is "
                "opened",
                self._store.path,
                error,
            )
        self._unsaved = set()

    def _load(self) -> None:
        if self._store.read_only:
            self.index = ExactIndex.build(*self._store.vectors())
            self._version = self._store.version
            return
        folder = index_folder(self._store.path)
        if folder.exists():
            try:
                index, manifest = default_index().load(folder)
                self.index = self._saved_when_trained(index)
                self._version = manifest.get("store_version", 0)
                saved_for = (manifest.get("fingerprint"), manifest.get("state"))
                if saved_for != (self._store.fingerprint, self._store.history.tag(self._version)):
                    raise RetrievalError(f"{folder} belongs to another memory or encoder")
                self.catch_up()
                return
            except RetrievalError as error:
                logger.warning("%s; the index is rebuilt from the store", error)
        self.rebuild()

    def _saved_when_trained(self, index: Index) -> Index:
        """Save `index` whenever it retrains itself, so that the next process need not."""

        def save() -> None:
            with self._lock.read():
                if self.index is index:
                    self.save()

        if isinstance(index, ScannIndex):
            index.when_trained = save
        return index
