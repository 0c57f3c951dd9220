"""Table maintenance: merging fragments and indexing ids and words keeps small changes fast."""

import logging

import lance

from retrieval.errors import first_line
from retrieval.store import lexical

logger = logging.getLogger(__name__)

ID_INDEX = "id_idx"
SCALAR_INDEX_FROM = 20_000  # rows; below, reading the id column is as fast
# (count, rows): `count` fragments of fewer than `rows` rows are merged into fragments of `rows`.
# A one-row change adds a fragment, and each fragment costs every look-up about 0.1 ms.
UPKEEP = ((8, 256), (16, 4_096), (24, 65_536), (32, 1_048_576))


def tidied(dataset: lance.LanceDataset, indexed: bool) -> lance.LanceDataset | None:
    """Return a handle on a newer version of the same passages; None if nothing is due.

    The maintenance commits carry no record. indexed: whether to index the ids of a large table.
    """
    rows = [fragment.metadata.physical_rows for fragment in dataset.get_fragments()]
    merges = [size for count, size in UPKEEP if sum(n < size for n in rows) >= count]
    names = lexical.indexes(dataset)
    index_ids = indexed and sum(rows) >= SCALAR_INDEX_FROM and ID_INDEX not in names
    if not merges and not index_ids and not lexical.due(dataset, names):
        return None
    newer = lance.dataset(dataset.uri)  # these calls modify the handle, which readers share
    try:
        if merges:
            newer.optimize.compact_files(target_rows_per_fragment=merges[-1])
        if index_ids:
            newer.create_scalar_index("id", "BTREE", name=ID_INDEX)
        elif ID_INDEX in names and len(merges) > 1:
            newer.optimize.optimize_indices(index_names=[ID_INDEX])
        lexical.upkeep(newer)
    except (OSError, RuntimeError, ValueError) as error:  # the change itself is committed
        logger.warning(
            "%s: upkeep failed and will be tried again at the next change: %s",
            dataset.uri,
            first_line(error),
        )
    return newer
