"""Updates: change a memory to hold the passages of the files, in resumable commits.

Only what differs is changed.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from retrieval.errors import RetrievalError
from retrieval.ingest import duplicates
from retrieval.ingest.documents import read_from
from retrieval.ingest.reading import is_table
from retrieval.memory import Memory
from retrieval.passages import Passage, listed, titled
from retrieval.store.store import Store

PART = 4096  # passages per commit


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Passage `id` repeats passage `of`; fields as in duplicates.Duplicate."""

    id: str
    of: str
    similarity: float
    exact: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """The differences between files and memory.

    adopted: unchanged passages whose origin is not recorded yet.
    gone: ids that came from these files but are no longer in them.
    moved: id of an added passage -> id of one in `gone` with the same title and text.
    """

    added: list[Passage]
    edited: list[Passage]
    unchanged: int
    adopted: list[Passage]
    gone: list[str]
    moved: dict[str, str]
    repeats: list[Repeat]


def plan(
    passages: Sequence[Passage],
    store: Store | None,
    covers: Callable[[str], bool],
    covers_names: Callable[[str], bool],
    drop_duplicates: bool = False,
) -> Plan:
    """Compare passages with a memory's store (None: a new memory) by id and content hash.

    passages: checked by check_passages. covers: whether an origin is one of the files.
    covers_names: whether a source is one, for passages stored before origins were recorded; these
    count only if their id is one that a build gives: it begins with the source, or the source is a
    table.

    Repeats are exact copies of passages from elsewhere in the memory, and exact or near copies of
    earlier `passages`. They are searched only when something differs or they are to be dropped.
    Raises RetrievalError for an id that came from elsewhere.
    """
    stored = (
        store.columns(["id", "content_hash", "source", "metadata", "origin"]).to_pylist()
        if store is not None
        else []
    )
    hashes, origins = (
        {row["id"]: row[name] for row in stored} for name in ("content_hash", "origin")
    )
    same = lambda passage: (
        hashes.get(passage.id)
        == dataclasses.replace(passage, origin=origins.get(passage.id)).content_hash
    )

    def is_ours(row: dict) -> bool:
        if row["origin"] is not None:
            return covers(row["origin"])
        file = read_from(row["source"], json.loads(row["metadata"]))
        return covers_names(file) and (row["id"].startswith(file) or is_table(file))

    ours = {row["id"] for row in stored if is_ours(row)}
    changed = [passage.id for passage in passages if not same(passage)]
    if strangers := [id for id in changed if id in hashes and id not in ours]:
        raise RetrievalError(
            f"in the memory already, but not from these files: {listed(strangers)}: give the new "
            "ones other ids, or delete those"
        )
    repeats = find_repeats(passages, store, ours) if changed or drop_duplicates else []
    if drop_duplicates:
        dropped = {repeat.id for repeat in repeats}
        passages = [passage for passage in passages if passage.id not in dropped]
    added = [passage for passage in passages if passage.id not in hashes]
    edited = [passage for passage in passages if passage.id in hashes and not same(passage)]
    adopted = [
        passage
        for passage in passages
        if passage.id in ours and origins[passage.id] is None and same(passage)
    ]
    gone = sorted(ours.difference(passage.id for passage in passages))
    left = (
        store.columns(["id", "title", "text"], gone).to_pylist()
        if store is not None and gone and added
        else []
    )
    said = {titled(row["title"], row["text"]): row["id"] for row in left}
    moved = {
        passage.id: said[passage.searchable] for passage in added if passage.searchable in said
    }
    return Plan(
        added, edited, len(passages) - len(added) - len(edited), adopted, gone, moved, repeats
    )


def find_repeats(
    passages: Sequence[Passage], store: Store | None, ours: Collection[str]
) -> list[Repeat]:
    """Return the passages that repeat a stored one not in `ours`, or an earlier one.

    Title and text are compared, among passages of the same access group.
    """
    rows = store.columns(["id", "title", "text", "access"]).to_pylist() if store is not None else []
    others = {
        (duplicates.digest(titled(r["title"], r["text"])), r["access"] or ""): r["id"]
        for r in rows
        if r["id"] not in ours
    }
    known = {
        p.id: others[key]
        for p in passages
        if (key := (duplicates.digest(p.searchable), p.access)) in others
    }
    found = [Repeat(id, of, 1.0, True) for id, of in known.items()]
    for access in dict.fromkeys(passage.access for passage in passages):
        rest = [
            passage for passage in passages if passage.access == access and passage.id not in known
        ]
        found += [
            Repeat(rest[d.index].id, rest[d.of].id, d.similarity, d.exact)
            for d in duplicates.find([p.searchable for p in rest])
        ]
    return found


def apply(
    memory: Memory,
    plan: Plan,
    sync: bool = False,
    author: str | None = None,
    reason: str = "",
    said: Callable[[str], None] = lambda line: None,
) -> None:
    """Edit, add and, with `sync`, delete passages, in commits of at most 4,096.

    said: called with a progress line after each commit but the last. An interruption leaves
    complete commits; planning and applying again does the rest. A passage keeps its vector if its
    title and text were stored before, under its own id or under one that is edited with it or gone.
    Adopted passages are written again with their origin.
    """
    add = lambda part, **how: memory.add(
        part, like=[plan.moved[p.id] for p in part if p.id in plan.moved], **how
    )
    parts = [(memory.update, part) for part in _parts(plan.edited)] + [
        (add, part) for part in _parts(plan.added)
    ]
    done, total, start = 0, len(plan.edited) + len(plan.added), time.monotonic()
    for change, part in parts:
        change(part, author=author, reason=reason)
        done += len(part)
        if done < total:
            seconds = time.monotonic() - start
            said(
                f"{done:,} of {total:,} passages, {done / seconds:.0f}/s, about "
                f"{seconds * (total - done) / done:.0f} s left"
            )
    for part in _parts(plan.adopted):
        memory.update(part, author=author, reason="files that passages were read from recorded")
    if sync and plan.gone:
        memory.delete(plan.gone, author=author, reason=reason)


def _parts(passages: list[Passage]) -> Iterator[list[Passage]]:
    return (passages[start : start + PART] for start in range(0, len(passages), PART))
