"""Memory: passages, their encoder and a vector index behind one interface."""

import contextlib
import dataclasses
import datetime
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from retrieval.encoders.encoding import (
    PROBE,
    Encode,
    MemoryEncoder,
    check_encoder,
    encoded,
    fingerprint,
    made_with,
)
from retrieval.errors import Overtaken, RetrievalError
from retrieval.filters import Filter
from retrieval.passages import (
    Commit,
    Diff,
    Hit,
    Passage,
    check_id,
    check_passages,
    check_record,
    checked_ids,
    nearest,
)
from retrieval.progress import chunks_with_progress
from retrieval.search.handle import Handle
from retrieval.search.ranking import Request, Rerank, View, choose, find
from retrieval.store.locations import check_free, index_folder
from retrieval.store.statistics import figures
from retrieval.store.store import Store
from retrieval.store.unfinished import Unfinished
from retrieval.verification import problems


class Memory:
    """A versioned set of passages that can be searched, changed and undone.

    The Lance table is the truth; the index is derived from it. Threads may share a Memory. Several
    processes may open the same folder; each search sees the commits of the others.
    """

    def __init__(self, store: Store, encode: Encode | None):
        self._store, self._handle = store, Handle(store)
        self._encoder = MemoryEncoder(store, encode, self._handle.lock)

    @classmethod
    def create(cls, path, encoder: Encode) -> "Memory":
        """Create an empty memory in a new folder.

        encoder: an Encoder, or any callable list[str] -> float32 [N, D]. Raises RetrievalError when
        the folder is in use or the encoder does not return finite vectors.
        """
        check_free(path)
        probe = encoded(encoder, [PROBE], None)
        source = str(getattr(encoder, "source", ""))
        return cls(Store.create(path, probe.shape[1], fingerprint(encoder, probe), source), encoder)

    @classmethod
    def open(cls, path, encoder: Encode | None = None) -> "Memory":
        """Open the memory in a folder.

        Without an encoder, the one the memory was made with is loaded from its recorded path when
        first needed. Raises RetrievalError when the folder holds no memory, or when `encoder` is
        not the one the memory was made with.
        """
        store = Store.open(path)
        if encoder is not None:
            check_encoder(encoder, store)
        return cls(store, encoder)

    @property
    def path(self) -> Path | str:
        return self._store.path

    @property
    def version(self) -> int:
        """The newest version this handle has seen."""
        return self._store.version

    def __len__(self) -> int:
        self._handle.see_others()
        return len(self._store)

    # Writing: each call is one commit, which the next search sees.

    def add(
        self,
        passages: Iterable[Passage],
        author: str | None = None,
        reason: str = "",
        *,
        like: Collection[str] = (),
    ) -> Commit:
        """Encode and add passages; a long job shows a progress bar on a terminal.

        like: ids of stored passages. A new passage with the title and text of one of them takes its
        vector instead of being encoded. Raises RetrievalError, changing nothing, when a passage is
        invalid or its id exists.
        """
        passages = check_passages(passages)
        self._check_change(author, reason)
        self._handle.see_others()
        self._store.check_new(p.id for p in passages)
        vectors, encoder = self._encoder.passage_vectors(passages, checked_ids(like))
        return self._handle.change(
            lambda: self._store.add(passages, vectors, author, reason), passages, vectors, encoder
        )

    def edit(
        self,
        id: str,
        text: str | None = None,
        title: str | None = None,
        source: str | None = None,
        metadata: dict[str, str] | None = None,
        author: str | None = None,
        reason: str = "",
        *,
        span: tuple[int, int] | None = None,
        time: str | None = None,
        tags: tuple[str, ...] | None = None,
        access: str | None = None,
    ) -> Commit:
        """Replace the fields given; a new text clears the span unless one is given.

        Raises RetrievalError when the id is unknown.
        """
        self._check_change(author, reason)
        given = {
            "text": text,
            "title": title,
            "source": source,
            "metadata": metadata,
            "span": span,
            "time": time,
            "tags": tags,
            "access": access,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if not changes:
            raise RetrievalError(
                f"the edit of {id!r} changes nothing: give a text, or another field"
            )
        while True:
            old, version = self._found(id)
            elsewhere = (
                {"span": None} if span is None and changes.get("text", old.text) != old.text else {}
            )
            new = dataclasses.replace(old, **changes, **elsewhere)
            check_passages([new])
            if new.searchable == old.searchable:  # the vector stays
                encoder, vectors = self._store.fingerprint, self._store.vectors([id])[0]
            else:
                vectors, encoder = self._encoder.vectors([new.searchable], "encoding")
            with contextlib.suppress(Overtaken):  # retry on top of the other writer's fields
                return self._handle.change(
                    partial(self._store.edit, [new], vectors, author, reason, version),
                    [new],
                    vectors,
                    encoder,
                )

    def update(
        self, passages: Iterable[Passage], author: str | None = None, reason: str = ""
    ) -> Commit:
        """Replace passages by those of the same ids, in one commit.

        Titles and texts that one of the old passages had are not encoded again. Raises
        RetrievalError, changing nothing, when a passage is invalid or its id is unknown.
        """
        passages = check_passages(passages)
        self._check_change(author, reason)
        self._handle.see_others()
        self._store.check_known(ids := [passage.id for passage in passages])
        vectors, encoder = self._encoder.passage_vectors(passages, ids)
        return self._handle.change(
            lambda: self._store.edit(passages, vectors, author, reason), passages, vectors, encoder
        )

    def delete(self, ids: Iterable[str], author: str | None = None, reason: str = "") -> Commit:
        """Delete passages; earlier versions keep them.

        Raises RetrievalError listing unknown ids, and then deletes none.
        """
        self._check_change(author, reason)
        ids = checked_ids(ids)
        return self._handle.change(lambda: self._store.delete(ids, author, reason))

    def undo(self, author: str | None = None, reason: str = "") -> Commit:
        """Restore the state before the latest change not yet undone, as a new commit.

        A second undo goes one change further back.
        """
        self._check_change(author, reason)
        return self._handle.change(lambda: self._store.undo(author, reason))

    def reembed(self, encoder: Encode, author: str | None = None, reason: str = "") -> Commit:
        """Encode every passage with another encoder and replace all vectors in one commit.

        Searches use the old encoder until the commit. An interrupted call resumes where it stopped.
        Earlier versions keep their vectors: `as_of(version, old_encoder)` searches them. Raises
        RetrievalError when `encoder` is the memory's own or its vectors are not finite. Other
        handles must be reopened afterwards.
        """
        self._check_change(author, reason)
        self._handle.see_others()
        probe = encoded(encoder, [PROBE], None)
        name, dim = fingerprint(encoder, probe), probe.shape[1]
        if made_with(self._store, encoder, probe):
            raise RetrievalError(f"{self.path} is encoded with {name} already: nothing was changed")
        made = Unfinished(index_folder(self.path).parent, name, dim)

        def vectors_of(passages: list[Passage]) -> np.ndarray:
            texts = [passage.searchable for passage in passages]
            for part in chunks_with_progress(made.lacking(texts), "encoding passages"):
                made.put(part, encoded(getattr(encoder, "passages", encoder), list(part), dim))
            return made.rows(texts)

        # Encode before taking the lock; the commit then encodes only what changed meanwhile.
        vectors_of([passage for passage, _ in self._store.get(self._store.ids()).values()])

        def commit() -> Commit:
            done = self._store.reembed(
                vectors_of, dim, name, str(getattr(encoder, "source", "")), author, reason
            )
            self._encoder.encode = encoder
            # Even if not loaded: the saved index has the old vectors.
            self._handle.live_index.rebuild()

            return done

        done = self._handle.change(commit)
        made.remove()
        return done

    # Reading

    def search(
        self,
        texts: Sequence[str],
        k: int = 5,
        *,
        mode: str = "dense",
        where: Filter | None = None,
        groups: Collection[str] = (),
        diversity: float = 0.0,
        rerank: Rerank | None = None,
    ) -> list[list[Hit]]:
        """Return the k best passages of each text, best first, all from one version.

        Fewer are returned where fewer are readable and match.

        mode: "dense" (cosine), "lexical" (BM25; a passage must share a word with the text) or
        "hybrid" (reciprocal rank fusion).
        where: a Filter.
        groups: access groups of the reader; passages of other groups are invisible. EVERY_GROUP
        reads all.
        diversity: 0 to 1, the penalty for similarity to hits ranked before.
        rerank: a function of a text and its candidates that returns their scores.
        """
        request = Request(texts, k, mode, where, groups, diversity, rerank)
        self._handle.ready(request.compares)
        if not request.texts or not len(self._store):
            return [[] for _ in request.texts]
        queries, encoder = (
            self._encoder.vectors(request.texts, "encoding queries", "queries")
            if request.compares
            else (None, None)
        )
        with self._handle.lock.read():
            current = encoder in (None, self._store.fingerprint)
            if current:
                view = View(
                    self._store,
                    self._handle.live_index.index if request.compares else None,
                    request.texts,
                    queries,
                )
                found = find(
                    view, request, self._handle.facts.allowed(request.where, request.groups)
                )
        if not current:  # a reembed was committed meanwhile
            return self.search(
                texts, k, mode=mode, where=where, groups=groups, diversity=diversity, rerank=rerank
            )
        return [
            choose(text, hits, vectors, request)
            for text, (hits, vectors) in zip(request.texts, found, strict=True)
        ]

    def get(self, id: str) -> Passage:
        """Return the passage with that id. Raises RetrievalError when there is none."""
        return self._found(id)[0]

    def ids(self) -> list[str]:
        """Return the ids of all passages, of every access group."""
        self._handle.see_others()
        return self._store.ids()

    def vectors(self, ids: Collection[str]) -> tuple[dict[str, Passage], np.ndarray]:
        """Return the existing passages of `ids`, by id, and their vectors, float32 [N, dim].

        Vectors are in the order of the dict. Passages of every access group are returned.
        """
        ids = checked_ids(ids)
        with self._handle.lock.read():
            found = self._store.get(ids)
            vectors, order = self._store.vectors(found)
        return {id: found[id][0] for id in order}, vectors

    def log(self) -> list[Commit]:
        """Return every change up to this handle's version, oldest first."""
        self._handle.see_others()
        return self._store.log()

    def diff(self, a, b) -> Diff:
        """Return the ids added, edited and deleted between two versions or times; see `as_of`."""
        return self._store.diff(a, b)

    def history(self, id: str) -> list[tuple[Commit, Passage | None]]:
        """Return every commit that touched a passage, oldest first, with the passage after it.

        The passage is None where it was deleted. Raises RetrievalError for an id that never
        existed.
        """
        check_id(id)
        self._handle.see_others()
        if past := self._store.past_of(id):
            return past
        raise RetrievalError(
            f"no passage {id!r} was ever in {self.path}, up to version {self.version}"
        )

    def as_of(
        self, version: int | str | datetime.datetime, encoder: Encode | None = None
    ) -> "Memory":
        """Return a read-only Memory at a commit's version (see `log`) or at a time.

        A time is ISO 8601 text (UTC without a zone) or a datetime (local time without a zone).
        Search is exact. A version from before a `reembed` is searched with the encoder it was made
        with: `encoder`, or the one at its recorded path.
        """
        past = self._store.at(version)
        if encoder is not None:
            check_encoder(encoder, past)
        return Memory(
            past,
            encoder
            or (self._encoder.encode if past.fingerprint == self._store.fingerprint else None),
        )

    def verify(self) -> list[str]:
        """Return what is damaged in the folder, one sentence each with the remedy; [] if sound."""
        return problems(self.path)

    def stats(self) -> dict:
        """Return the contents of this version as plain values: counts by tag and access group,
        encoder, bytes on disk.
        """
        self._handle.see_others()
        return figures(self._store)

    def _found(self, id: str) -> tuple[Passage, int]:
        """Return the passage and the version that wrote it."""
        check_id(id)
        self._handle.see_others()
        found = self._store.get([id])
        if id not in found:
            raise RetrievalError(
                f"passage {id!r} is not in version {self.version} of "
                f"{self.path}{nearest(id, self._store.ids())}"
            )
        return found[id]

    def _check_change(self, author: str | None, reason: str) -> None:
        self._store.check_writable()
        check_record(author, reason)
