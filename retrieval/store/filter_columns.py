"""Dictionary-encoded access, tag and time columns for vectorised filters."""

import json
import threading
from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.filters import BETWEEN, Allowed, Filter, readable
from retrieval.passages import Passage, moment
from retrieval.store.store import Store

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("access", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("time", pa.string()),
    ]
)
COLUMNS = tuple(SCHEMA.names)
READ_ANEW_FROM = 2_000  # changed passages; above, reading whole columns is faster


class FilterColumns:
    """The filter columns of all passages of one version, kept in step with the store.

    Each column has its distinct values and an integer code per row, so a condition is evaluated
    once per distinct value. The cost of a change is proportional to the rows it changed. In a view
    of the past, a passage is readable only if both its access group then and its access group now
    allow it.
    """

    def __init__(self, store: Store):
        self._store = store
        self._version = self._present_version = 0
        self._written: tuple[int, dict[str, Passage]] = (0, {})
        self._metadata: tuple[int, dict[str, dict[str, str]]] = (0, {})
        self._lock = threading.Lock()

    def allowed(self, where: Filter | None, groups: Collection[str]) -> Allowed | None:
        """Return the passages that `groups` may read and `where` matches; None if all.

        The caller keeps the store from moving.
        """
        with self._lock:
            self._follow()
            rights = [name for name in self._values if name.startswith("access")]
            passing = {
                name: [readable(access, groups) for access in self._values[name]] for name in rights
            }
            if where is not None and (where.any_tags or where.all_tags):
                passing["tags"] = [where.tagged(tags) for tags in self._values["tags"]]
            if where is not None and (where.after or where.before):
                passing["time"] = self._timely(where)
            mask = np.ones(len(self._ids), bool)
            for name, passes in passing.items():
                if not all(passes):
                    mask &= np.asarray(passes, bool)[self._codes[name]]
            if where is not None and where.metadata:
                mask &= self._described(where.metadata)
            return None if mask.all() else Allowed(self._ids, self._row, mask)

    def _described(self, wanted: dict[str, str]) -> np.ndarray:
        """Return bool [N]: the passages with these metadata values.

        The metadata of all passages is read once per version.
        """
        if self._metadata[0] != self._store.version:
            table = self._store.columns(["id", "metadata"])
            texts = dict(zip(table["id"].to_pylist(), table["metadata"].to_pylist(), strict=True))
            self._metadata = (
                self._store.version,
                {id: json.loads(text) for id, text in texts.items() if text != "{}"},
            )
        held = self._metadata[1]
        return np.array([wanted.items() <= held.get(id, {}).items() for id in self._ids], bool)

    def learn(self, passages: Collection[Passage]) -> None:
        """Take the filter values of the only passages that the newest commit changed.

        The caller keeps the store from moving.
        """
        with self._lock:
            self._written = self._store.version, {passage.id: passage for passage in passages}

    def _follow(self) -> None:
        if self._version != self._store.version:
            changed = self._store.history.changed_since(self._version) if self._version else None
            version, written = self._written
            if changed and version == self._store.version and changed == written.keys():
                rows = [
                    {name: getattr(passage, name) for name in COLUMNS}
                    for passage in written.values()
                ]
                self._update(changed, pa.Table.from_pylist(rows, SCHEMA))
            elif changed is None or len(changed) > READ_ANEW_FROM:
                self._read(self._store.columns(COLUMNS))
            else:
                self._update(changed, self._store.columns(COLUMNS, changed))
            self._version = self._store.version
        if (
            self._store.read_only
            and (present := Store.open(self._store.path)).version != self._present_version
        ):
            self._put(
                "access_now", pa.array(last_access(present, self._ids, self._version), pa.string())
            )
            self._present_version = present.version

    def _read(self, table: pa.Table) -> None:
        self._ids = table["id"].to_pylist()
        self._row = {id: row for row, id in enumerate(self._ids)}
        self._values: dict[str, dict[str, int]] = {}  # column -> distinct value -> code
        self._codes: dict[str, np.ndarray] = {}  # column -> code of every row
        self._moments = np.zeros(0)  # of the distinct times, seconds since 1970
        for name in COLUMNS[1:]:
            self._put(name, _strings(table[name]).combine_chunks())

    def _put(self, name: str, column: pa.Array) -> None:
        coded = column.dictionary_encode()
        self._values[name] = {
            value: code for code, value in enumerate(coded.dictionary.to_pylist())
        }
        self._codes[name] = coded.indices.to_numpy(zero_copy_only=False).astype(np.int32)

    def _update(self, changed: set[str], table: pa.Table) -> None:
        ids = table["id"].to_pylist()
        for id in changed.difference(ids):
            if id in self._row:  # move the last row into the gap
                row, last = self._row.pop(id), self._ids.pop()
                if last != id:
                    self._ids[row], self._row[last] = last, row
                for codes in self._codes.values():
                    codes[row] = codes[len(self._ids)]
        for id in ids:
            if id not in self._row:
                self._row[id] = len(self._ids)
                self._ids.append(id)
        at = [self._row[id] for id in ids]
        for name in COLUMNS[1:]:
            values, codes = self._values[name], self._codes[name][: len(self._ids)]
            codes = np.concatenate([codes, np.zeros(len(self._ids) - len(codes), np.int32)])
            codes[at] = [
                values.setdefault(value, len(values)) for value in _strings(table[name]).to_pylist()
            ]
            self._codes[name] = codes

    def _timely(self, where: Filter) -> list[bool]:
        new = list(self._values["time"])[len(self._moments) :]
        self._moments = np.append(
            self._moments, [moment(time).timestamp() if time else np.nan for time in new]
        )
        after = moment(where.after).timestamp() if where.after else -np.inf
        before = moment(where.before).timestamp() if where.before else np.inf
        return ((self._moments >= after) & (self._moments < before)).tolist()


def last_access(present: Store, ids: list[str], since: int) -> list[str]:
    """Return the current access group of each id, or its last one if it was deleted.

    since: a version that contained all of them.
    """
    known = _access(present)
    gone = set(ids).difference(known)
    touching = (
        [
            commit
            for commit in reversed(present.log())
            if commit.version > since and gone.intersection(commit.ids)
        ]
        if gone
        else []
    )
    for commit, before in zip(
        touching, present.earlier([commit.version - 1 for commit in touching]), strict=True
    ):
        if touched := gone.intersection(commit.ids):
            found = _access(before, touched)
            known |= found
            gone -= set(found)
    return [known[id] for id in ids]


def _access(store: Store, ids: Collection[str] | None = None) -> dict[str, str]:
    table = store.columns(["id", "access"], ids)
    return dict(zip(table["id"].to_pylist(), _strings(table["access"]).to_pylist(), strict=True))


def _strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace null by "" and join a list of tags into one string."""
    if pa.types.is_list(column.type):
        column = pc.call_function("binary_join", [column, BETWEEN])
    return pc.fill_null(column, "")
