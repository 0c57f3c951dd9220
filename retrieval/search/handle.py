"""Handle: the table, filter columns and index of an open memory, kept at one version."""

from collections.abc import Callable, Sequence

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.passages import Commit, Passage
from retrieval.search.live_index import LiveIndex
from retrieval.store.filter_columns import FilterColumns
from retrieval.store.locks import ReadersWriter
from retrieval.store.store import Store


class Handle:
    """A store, its filter columns and its index; under the read lock all show the same version."""

    def __init__(self, store: Store):
        self.store, self.facts = store, FilterColumns(store)
        self.lock = ReadersWriter()
        self.live_index = LiveIndex(store, self.lock)

    def change(
        self,
        commit: Callable[[], Commit],
        passages: Sequence[Passage] = (),
        vectors: np.ndarray | None = None,
        encoder: str | None = None,
    ) -> Commit:
        """Make a commit and update filter columns and index.

        passages: what the commit writes. vectors: theirs, [N, dim], from the encoder with that
        fingerprint.
        """
        with self.lock.write():
            if encoder not in (None, self.store.fingerprint):
                raise RetrievalError(
                    f"{self.store.path} was re-encoded during this change: nothing was changed, "
                    "try again"
                )
            done = commit()
            self.facts.learn(passages)
            self.live_index.catch_up(
                {} if vectors is None else dict(zip(done.ids, vectors, strict=True))
            )
        return done

    def see_others(self) -> None:
        """Move to the newest version if another process has written one."""
        if not self.store.is_behind():
            return
        with self.lock.write():
            if self.store.latest():
                self.live_index.catch_up()

    def ready(self, with_index: bool) -> None:
        """Move to the newest version; `with_index` also updates the index."""
        self.see_others()
        if with_index and not self.live_index.is_current():
            with self.lock.write():
                self.live_index.refresh()
