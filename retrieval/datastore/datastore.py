"""Datastore: a versioned folder of segments, built with a model from a memory or packed rows.

The manifest names the segments and the passages of each that were removed. It is replaced in one
rename after everything that it names is on disk, so a process killed at any moment leaves the old
version or the new one. Segments never change: a snapshot of an older version stays as it was.
"""

import dataclasses
import os
import shutil
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.packed import Packed
from retrieval.datastore import building, manifest
from retrieval.datastore.building import Made, Settings, Tally
from retrieval.datastore.identity import Identity
from retrieval.datastore.manifest import LOCK, PROJECTION, SEGMENTS
from retrieval.datastore.observer import Observer
from retrieval.datastore.projection import Projection
from retrieval.datastore.segment import Segment, Writer, copied, index_kind
from retrieval.datastore.snapshot import Snapshot
from retrieval.errors import RetrievalError
from retrieval.filters import EVERY_GROUP
from retrieval.memory import Memory
from retrieval.store.locks import file_lock

DEFAULT = Settings()
MANY = 8  # segments; above, the smaller ones become one


@dataclasses.dataclass(frozen=True, eq=False)
class _State:
    """One version, as its manifest (`facts`) has it. dead: bool [P] of every segment."""

    facts: dict
    segments: tuple[Segment, ...]
    dead: tuple[np.ndarray, ...]


class Datastore:
    """Entries of context vectors and the tokens that followed them. Threads may share one.

    Raises RetrievalError when the folder holds no datastore, or a damaged one.
    """

    def __init__(self, path):
        self.path, self._lock = Path(path), threading.RLock()
        self._seen: Any = None
        self._state: _State | None = None
        self._hidden: tuple[Any, frozenset[str]] = None, frozenset()
        self._snapshot: tuple[Any, Snapshot | None] = None, None
        manifest.read(self.path)
        self._projection = Projection.load(self.path / PROJECTION)
        self._refresh()

    @classmethod
    def build(
        cls, path, source: Memory | Packed, observer: Observer, settings: Settings = DEFAULT
    ) -> tuple["Datastore", Made]:
        """Build a datastore in a new folder from the passages of a memory, or from packed rows.

        Vectors are written as they are computed. Raises RetrievalError when the folder is in use,
        or there is nothing to predict.
        """
        path, kind, tally = Path(path), index_kind(settings.index), Tally()
        if path.exists() and any(path.iterdir()):
            raise RetrievalError(f"{path} is in use: give a folder that is new or empty")
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            memory = manifest.memory_facts(source) if isinstance(source, Memory) else None
            stream = building.entries(building.chunks(source, observer), observer, tally)
            segments = building.write(work, stream, settings, kind)
            facts = {
                "format": manifest.FORMAT,
                "version": 1,
                "identity": dataclasses.asdict(observer.identity),
                "index": settings.index,
                "segment": settings.segment,
                "memory": memory,
                "segments": segments,
                "dead": {},
            }
            manifest.write(work, facts)
            work.chmod(0o755)
            os.rename(work, path)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        return cls(path), tally.made(1)

    def check(self, identity: Identity) -> None:
        """Raise RetrievalError, naming what differs, unless the datastore was built with these."""
        self.identity.check(identity, self.path)

    @property
    def identity(self) -> Identity:
        return Identity(**self._now().facts["identity"])

    @property
    def version(self) -> int:
        return self._now().facts["version"]

    @property
    def memory_version(self) -> int | None:
        """The version of the memory it holds; None where it was built from other text."""
        memory = self._now().facts["memory"]
        return memory and memory["version"]

    def __len__(self) -> int:
        return len(self.snapshot(groups=EVERY_GROUP))

    def snapshot(self, memory: Memory | None = None, groups: Collection[str] = ()) -> Snapshot:
        """The newest version, without passages that only other access groups may read.

        memory: the memory it was built from. Passages that were changed or deleted there since are
        left out at once; what is new comes in with `update`. Raises RetrievalError for another
        memory.
        """
        self._refresh()
        state = self._now()
        hidden = frozenset() if memory is None else self._changed(state, memory)
        groups = groups if groups is EVERY_GROUP else frozenset(groups)
        seen = None if memory is None else memory.version
        key = state, hidden, groups, seen
        if self._snapshot[0] == key and self._snapshot[1] is not None:
            return self._snapshot[1]
        parts = []
        for segment, dead in zip(state.segments, state.dead, strict=True):
            out = dead | np.array(
                [
                    one.id in hidden or bool(one.access and one.access not in groups)
                    for one in segment.sources
                ]
            )
            if not out.all():
                parts.append((segment, ~out if out.any() else None))
        made = Snapshot(state.facts["version"], seen, self._projection, tuple(parts))
        self._snapshot = key, made
        return made

    def update(self, memory: Memory, observer: Observer) -> Made:
        """Bring the datastore to the memory's newest version, in one step.

        Passages that were edited or deleted leave it; edited and new ones are read. Snapshots taken
        before stay as they are. Raises RetrievalError, changing nothing, for another memory, model,
        tokenizer or tap.
        """
        self.check(observer.identity)
        with file_lock(self.path / LOCK):
            self._refresh()
            state = self._now()
            gone, newest = self._changed(state, memory), manifest.memory_facts(memory)
            old = state.facts["memory"]
            if newest == old:
                return Tally().made(self.version)
            dead = [
                dead | np.array([one.id in gone for one in segment.sources])
                for segment, dead in zip(state.segments, state.dead, strict=True)
            ]
            removed = sum(map(np.sum, dead)) - sum(map(np.sum, state.dead))
            tally, segments = Tally(int(removed)), list(state.segments)
            change = memory.diff(old["version"], newest["version"])
            made = self._read(memory, observer, [*change.added, *change.edited], tally)
            segments += made
            dead += [np.zeros(len(one.sources), bool) for one in made]
            segments, dead = self._tidied(segments, dead)
            version = state.facts["version"] + 1
            facts: dict = state.facts | {
                "version": version,
                "memory": newest,
                "segments": [segment.facts for segment in segments],
                "dead": {
                    segment.name: np.flatnonzero(out).tolist()
                    for segment, out in zip(segments, dead, strict=True)
                    if out.any()
                },
            }
            with self._lock:
                manifest.write(self.path, facts)
                self._seen = manifest.stamp(self.path)
                self._state = _State(facts, tuple(segments), tuple(dead))
            self._remove_unused(facts)
        return tally.made(version)

    def _read(
        self, memory: Memory, observer: Observer, ids: list[str], tally: Tally
    ) -> list[Segment]:
        """New segments of passages."""
        facts = self._now().facts
        settings = Settings(index=facts["index"], segment=facts["segment"])
        stream = building.entries(building.of_memory(memory, observer, ids), observer, tally)
        kind = index_kind(settings.index)
        made = building.write(self.path, stream, settings, kind, self._projection)
        return [self._load(one) for one in made]

    def _load(self, facts: dict) -> Segment:
        folder = self.path / SEGMENTS / facts["name"]
        kind = index_kind(self._now().facts["index"])
        return Segment.load(folder, self._projection.width, facts, kind)

    def _tidied(
        self, segments: list[Segment], dead: list[np.ndarray]
    ) -> tuple[list[Segment], list[np.ndarray]]:
        """Drop empty segments; where there are many, or most of one is dead, rewrite those."""
        kept = [(one, out) for one, out in zip(segments, dead, strict=True) if not out.all()]
        living = [int(one.sizes[~out].sum()) for one, out in kept]
        again = {at for at, (one, _) in enumerate(kept) if 2 * living[at] < len(one)}
        facts = self._now().facts
        if len(kept) > MANY:
            again |= {at for at in range(len(kept)) if 2 * living[at] < facts["segment"]}
        if again:
            writer = Writer(manifest.next_folder(self.path), self._projection.width)
            for at in sorted(again):
                copied(writer, kept[at][0], ~kept[at][1])
            merged = self._load(writer.close(index_kind(facts["index"])))
            kept = [pair for at, pair in enumerate(kept) if at not in again]
            kept.append((merged, np.zeros(len(merged.sources), bool)))
        return [one for one, _ in kept], [out for _, out in kept]

    def _remove_unused(self, facts: dict) -> None:
        """Delete folders of segments that no version names; open snapshots keep their files."""
        used = {one["name"] for one in facts["segments"]}
        for folder in (self.path / SEGMENTS).iterdir():
            if folder.name not in used:
                shutil.rmtree(folder, ignore_errors=True)

    def _now(self) -> _State:
        assert self._state is not None
        return self._state

    def _refresh(self) -> None:
        """Read the manifest again if another process has replaced it."""
        with self._lock:
            if (stamp := manifest.stamp(self.path)) == self._seen:
                return
            facts = manifest.read(self.path)
            old = {} if self._state is None else {one.name: one for one in self._state.segments}
            self._state = self._state or _State(facts, (), ())
            segments, dead = [], []
            for one in facts["segments"]:
                segment = old.get(one["name"]) or self._load(one)
                out = np.zeros(len(segment.sources), bool)
                out[facts["dead"].get(segment.name, [])] = True
                segments.append(segment)
                dead.append(out)
            self._state, self._seen = _State(facts, tuple(segments), tuple(dead)), stamp

    def _changed(self, state: _State, memory: Memory) -> frozenset[str]:
        """Passages of the datastore that the memory has changed or deleted since."""
        known = state.facts["memory"]
        if known is None:
            raise RetrievalError(
                f"the datastore {self.path} was not built from a memory: build one from it"
            )
        len(memory)  # moves to the newest version
        key = str(memory.path), memory.version, known["version"]
        if self._hidden[0] != key:
            if manifest.commit_of(memory, known["version"]) != known["commit"]:
                raise RetrievalError(
                    f"the datastore {self.path} holds version {known['version']} of another memory "
                    f"than {memory.path}, or of a later state of it: build it again from this one"
                )
            change = memory.diff(known["version"], memory.version)
            self._hidden = key, frozenset(change.edited + change.deleted)
        return self._hidden[1]
