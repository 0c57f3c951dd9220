"""Upkeep: fewer fragments and an index over the ids, so that one-row changes and look-ups stay fast."""

import logging
from pathlib import Path

import lance

from retrieval.errors import first_line

logger = logging.getLogger(__name__)

SCALAR_INDEX_FROM = 20_000  # rows; below, reading the id column is as fast
UPKEEP = ((8, 256), (16, 4_096), (24, 65_536), (32, 1_048_576))  # so many fragments with fewer rows are made into one of so many:
# a one-row change adds a fragment, each costs every look-up some 0.1 ms, and old versions keep the fragments they had


def tidied(dataset: lance.LanceDataset, indexed: bool) -> lance.LanceDataset | None:
    """A handle on a newer version of the same passages, made by commits without a record; None where nothing was due.

    indexed: whether ids are looked up in an index once there are many.
    """
    rows = [fragment.metadata.physical_rows for fragment in dataset.get_fragments()]
    merges = [size for count, size in UPKEEP if sum(n < size for n in rows) >= count]
    large = indexed and sum(rows) >= SCALAR_INDEX_FROM
    if not merges and not (large and not Path(dataset.uri, "_indices").exists()):
        return None
    newer = lance.dataset(dataset.uri)  # a handle of its own, as these calls change it under readers
    try:
        if merges:
            newer.optimize.compact_files(target_rows_per_fragment=merges[-1])
        if large and not newer.describe_indices():
            newer.create_scalar_index("id", "BTREE")
        elif large and len(merges) > 1:
            newer.optimize.optimize_indices()
    except (OSError, RuntimeError, ValueError) as error:  # the change before is committed
        logger.warning("%s: upkeep failed and will be tried again at the next change: %s", dataset.uri, first_line(error))
    return newer
