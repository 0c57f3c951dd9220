"""Filters: which passages a search may return, decided before ranking."""

import dataclasses
import datetime
import unicodedata
from collections.abc import Collection

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.passages import items, moment

BETWEEN = "\x1f"  # separates tags in one string; tags are printable, so none contains it


@dataclasses.dataclass(frozen=True)
class Filter:
    """Conditions on tags, time and metadata; a passage must meet all of them.

    any_tags: it has at least one of them. all_tags: it has all of them. Tags are compared in
    Unicode's composed form (NFC), case-sensitively. after, before: its time t satisfies after <= t
    < before; ISO 8601 text (UTC without a zone) or a datetime (local time without a zone). A
    passage without a time meets neither bound. metadata: exact values by name. Raises
    RetrievalError for anything else.
    """

    any_tags: tuple[str, ...] = ()
    all_tags: tuple[str, ...] = ()
    after: str | datetime.datetime = ""
    before: str | datetime.datetime = ""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        for name in ("any_tags", "all_tags"):
            tags = getattr(self, name)
            tags = (tags,) if isinstance(tags, str) else tuple(items(tags, f"words as {name}"))
            if not all(isinstance(tag, str) and tag for tag in tags):
                raise RetrievalError(f"{name} is {tags!r}; expected words")
            object.__setattr__(self, name, tuple(unicodedata.normalize("NFC", tag) for tag in tags))
        for name in ("after", "before"):
            if not isinstance(getattr(self, name), str | datetime.datetime):
                raise RetrievalError(
                    f"{name} is {getattr(self, name)!r}; expected an ISO 8601 time, such as "
                    "2026-11-24, or a datetime"
                )
            if getattr(self, name):
                moment(getattr(self, name), name)

        if not isinstance(self.metadata, dict) or not all(
            isinstance(text, str) for pair in self.metadata.items() for text in pair
        ):
            raise RetrievalError(f"metadata is {self.metadata!r}; expected a dict of strings")

    def tagged(self, joined: str) -> bool:
        tags = unicodedata.normalize("NFC", joined).split(BETWEEN)
        return all(tag in tags for tag in self.all_tags) and (
            not self.any_tags or any(tag in tags for tag in self.any_tags)
        )


class _EveryGroup(Collection):
    """Contains every group name: for the owner of a memory, who may read all of it."""

    def __contains__(self, group: object) -> bool:
        return True

    def __iter__(self):
        raise TypeError("EVERY_GROUP cannot be listed")

    def __len__(self):
        raise TypeError("EVERY_GROUP cannot be counted")

    def __repr__(self):
        return "EVERY_GROUP"


EVERY_GROUP = _EveryGroup()
NAMES = "names of access groups, () for what everybody may read"


def checked_groups(groups: Collection[str]) -> Collection[str]:
    """Return the groups as a set. Raises RetrievalError for an invalid name.

    "" is not a group name: passages with access "" are readable by everybody.
    """
    if isinstance(groups, _EveryGroup):
        return groups
    names = [groups] if isinstance(groups, str) else items(groups, NAMES)
    if not all(isinstance(group, str) and group for group in names):
        raise RetrievalError(f"groups are {sorted(map(repr, names))}; expected {NAMES}")
    return set(names)


def readable(access: str, groups: Collection[str]) -> bool:
    """Whether a member of `groups` may read a passage of that access group."""
    return access == "" or access in groups


class Allowed:
    """The passages that pass a filter: a mask over ids by row."""

    def __init__(self, ids: list[str], row: dict[str, int], mask: np.ndarray):
        self._ids, self._row, self._mask = ids, row, mask
        self._count = int(mask.sum())

    def __len__(self):
        return self._count

    def __contains__(self, id: str) -> bool:
        row = self._row.get(id)  # an index may hold an id for a moment longer than the store
        return row is not None and bool(self._mask[row])

    def ids(self) -> list[str]:
        return [self._ids[row] for row in np.flatnonzero(self._mask)]
