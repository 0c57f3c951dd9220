"""History: who changed what, when and why.

Each commit's own transaction carries its record, so data and record cannot disagree.
"""

import dataclasses
import datetime
import getpass
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import lance

from retrieval.errors import RetrievalError, in_words
from retrieval.passages import Commit, moment
from retrieval.store import checksums

RECORD = "openbook"  # the transaction property that holds a commit's record
MANY = 16  # unread transactions; above, the journal is read instead
REEMBED = "reembed"  # the action after which vectors before and after cannot be compared


@dataclasses.dataclass(frozen=True)
class Record:
    """A commit, and the version that undoing it restores (None: nothing to undo)."""

    commit: Commit
    undo_to: int | None


class History:
    """The records of a table up to its `dataset`'s version.

    A version never changes, so each record is read once.
    """

    def __init__(self, dataset: lance.LanceDataset, journal: Path | None = None):
        self.dataset = dataset
        self._journal = journal  # checksums file with copies of the records: faster to read
        self._read: dict[int, Record | None] = {}
        # Reading a transaction borrows the handle mutably: a second thread gets a RuntimeError.
        self._lock = threading.Lock()
        self._handle = lance.dataset(dataset.uri)

    def log(self) -> list[Commit]:
        """Return every change, oldest first."""
        return [record.commit for record in self._after(0)]

    def changed_since(self, version: int) -> set[str] | None:
        """Return the ids touched by commits after `version`.

        None when this history does not contain that version, or it had another encoder.
        """
        if not 1 <= version <= self.dataset.version:
            return None
        reembedded = any(record.commit.action == REEMBED for record in self._after(version))
        return None if reembedded else self.touched_since(version)

    def touched_since(self, version: int) -> set[str]:
        """Return the ids that commits after `version` added, edited, deleted or restored."""
        return {id for record in self._after(version) for id in record.commit.ids}

    def learn(self, version: int, text: str) -> Commit:
        """Cache the record of a commit that was just made; return its Commit."""
        with self._lock:
            record = self._read[version] = _parsed(version, text)
        assert record is not None
        return record.commit

    def first_after(self, version: int) -> Commit:
        return next(record.commit for record in self._after(version))

    def state(self, version: int) -> Record:
        """Return the record of the change that made the state seen at `version`."""
        for earlier in range(version, 0, -1):
            if (record := self._record(earlier)) is not None:
                return record
        raise RetrievalError(
            f"{self.dataset.uri} has no history: it was not made by Memory.create, or its "
            "_transactions folder was removed"
        )

    def tag(self, version: int) -> str:
        """Hash the commit that made the state of `version`; "" for an unknown version.

        Another memory, or a copy that has since diverged, has another tag.
        """
        if not 1 <= version <= self.dataset.version:
            return ""
        record = self.state(version)
        fields = [getattr(record.commit, field.name) for field in dataclasses.fields(Commit)]
        return hashlib.sha256(
            json.dumps([fields, record.undo_to], ensure_ascii=False).encode()
        ).hexdigest()

    def at(self, when: str | datetime.datetime) -> int:
        """Return the version that was the newest at a time (see `passages.moment`).

        Raises RetrievalError for a time before the first version.
        """
        then = moment(when, "the time asked for")
        earlier = [commit.version for commit in self.log() if moment(commit.time) <= then]
        if earlier:
            return earlier[-1]
        raise RetrievalError(
            f"{self.dataset.uri} did not exist at {then.isoformat()}: its first version is of "
            f"{self.state(1).commit.time}"
        )

    def _after(self, version: int):
        later = range(version + 1, self.dataset.version + 1)
        with self._lock:
            if (
                self._journal is not None
                and sum(number not in self._read for number in later) > MANY
            ):
                noted = checksums.records(self._journal).items()
                self._read |= {
                    number: _parsed(number, text)
                    for number, text in noted
                    if number not in self._read
                }
        records = (self._record(number) for number in later)
        return (record for record in records if record is not None)

    def _record(self, version: int) -> Record | None:
        """Return the record written with `version`; None for a maintenance commit."""
        with self._lock:
            if version not in self._read:
                self._read[version] = _record_of(self._handle, version)
            return self._read[version]


def _record_of(dataset: lance.LanceDataset, version: int) -> Record | None:
    try:
        with in_words(
            f"the record of version {version} in {dataset.uri} cannot be read; `verify` says "
            "what is damaged"
        ):
            transaction = dataset.read_transaction(version)
    except TypeError:  # pylance 14 cannot convert a compaction to Python
        return None
    return _parsed(
        version,
        (transaction.transaction_properties or {}).get(RECORD) if transaction is not None else None,
    )


def _parsed(version: int, text: str | None) -> Record | None:
    if text is None:
        return None
    try:
        row = json.loads(text)
        commit = Commit(
            version, row["action"], row["author"], row["reason"], row["time"], tuple(row["ids"])
        )
        # On an object store another commit may have come in between, so undo_to may be too old.
        plain = commit.action in ("add", "edit", "delete")
        return Record(commit, version - 1 if plain else row["undo_to"])
    except (ValueError, KeyError, TypeError):
        raise RetrievalError(
            f"the record of version {version} is damaged: `verify` says which file, restore it "
            "from a copy"
        ) from None


def properties(
    action: str, ids: Sequence[str], author: str | None, reason: str, undo_to: int | None
) -> dict[str, str]:
    """Return the transaction properties that hold a commit's record."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    record = {
        "action": action,
        "author": author or _user(),
        "reason": reason,
        "time": now,
        "ids": list(ids),
        "undo_to": undo_to,
    }
    return {RECORD: json.dumps(record, ensure_ascii=False)}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return "unknown"
