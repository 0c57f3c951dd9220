"""Opening versions of a memory's table, with their manifests checked: Lance does not check them."""

from collections.abc import Collection
from pathlib import Path

import lance

from retrieval.errors import RetrievalError, in_words
from retrieval.store import checksums
from retrieval.store.locations import check_there, identity, recover, table_uri


def open_newest(place: Path | str) -> lance.LanceDataset:
    """Open the newest version. Raises RetrievalError where it was lost or changed."""
    if isinstance(place, str):
        return open_version(place)
    table = Path(table_uri(place))
    noted = checksums.newest_noted(table)  # before opening: a version noted now must be there
    dataset = open_version(place)
    checksums.check_newest(table, dataset.version, noted)
    return dataset


def open_whole(place: Path | str) -> tuple[lance.LanceDataset, tuple[int, int] | None]:
    """Open the newest version; return it with the memory's identity.

    The two belong together even while another memory replaces this one. Raises RetrievalError where
    there is none.
    """
    while True:
        recover(place)
        check_there(place)
        here = identity(place)
        try:
            dataset = open_newest(place)
        except RetrievalError:
            if identity(place) == here:
                raise
        else:
            if identity(place) == here:
                return dataset, here


def check_same(place: Path | str, here: tuple[int, int] | None) -> None:
    """Raise RetrievalError unless the memory with this identity is still at `place`."""
    if identity(place) != here:
        raise RetrievalError(
            f"{place} was replaced or moved since it was opened here: open it again"
        )


def check_versions(place: Path | str, versions: Collection[int]) -> None:
    """Raise RetrievalError where one of these versions was changed after it was written."""
    if versions and isinstance(place, Path):
        checksums.check_versions(Path(table_uri(place)), versions)


def open_version(place: Path | str, version: int | None = None) -> lance.LanceDataset:
    """Open a version, None for the newest.

    Raises RetrievalError for a numbered version that was changed after it was written.
    """
    check_versions(place, [] if version is None else [version])
    asked = "" if version is None else f" at version {version}"
    with in_words(f"{table_uri(place)}{asked} cannot be read; `verify` says what is damaged"):
        return lance.dataset(table_uri(place), version=version)
