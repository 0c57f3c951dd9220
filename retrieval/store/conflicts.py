"""Commit conflicts between writers on an object store.

No lock can be held there, and two writers must not both commit on top of the same version.
"""

import dataclasses

import lance
import pyarrow as pa

FRAGMENTS_A_COMMIT = 1_000  # upper bound; a fragment has up to a million rows


def exclusive(transaction: lance.Transaction, dataset: lance.LanceDataset) -> None:
    """Make a transaction that adds rows conflict with any other commit since `dataset`.

    Lance lets two appends with the same ids both pass. It lets nothing pass beside a merge, which
    lists all fragments, so an append becomes a merge. Edits and deletes are left as they are: those
    of the same rows conflict, and those of other rows may commit in any order.
    """
    if not isinstance(transaction.operation, lance.LanceOperation.Append):
        return
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    # An id that no older fragment, and no index over it, has used.
    first = dataset.version * FRAGMENTS_A_COMMIT
    new = [
        dataclasses.replace(fragment, id=id)
        for id, fragment in enumerate(transaction.operation.fragments, start=first)
    ]
    transaction.operation = lance.LanceOperation.Merge([*fragments, *new], dataset.lance_schema)


def exchange(dataset: lance.LanceDataset, ids: pa.Table, rows: pa.Table) -> lance.Transaction:
    """Return a transaction that replaces the rows of `ids` by `rows`.

    It conflicts with any other commit since `dataset`. Undo uses it on an object store: Lance's
    restore lets another commit pass and then reverts it unseen. Every fragment is listed as
    changed, so any concurrent change conflicts.
    """
    transaction, _ = dataset.merge_insert("id").when_matched_delete().execute_uncommitted(ids)
    made = transaction.operation
    assert isinstance(made, lance.LanceOperation.Update)
    changed = {fragment.metadata.id: fragment.metadata for fragment in dataset.get_fragments()}
    changed |= {fragment.id: fragment for fragment in made.updated_fragments}
    made.updated_fragments = [changed[id] for id in changed if id not in made.removed_fragment_ids]
    if len(rows):
        made.new_fragments = lance.fragment.write_fragments(rows, dataset, mode="append")
    return transaction
