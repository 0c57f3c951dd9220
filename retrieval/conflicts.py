"""Conflicts: two writers on an object store, where no lock can be held, must not both commit on top of the same version."""

import dataclasses

import lance
import pyarrow as pa

FRAGMENTS_A_COMMIT = 1_000  # at most; of a million rows each


def exclusive(transaction: lance.Transaction, dataset: lance.LanceDataset) -> None:
    """Makes a transaction that adds rows conflict with any other commit since `dataset`.

    Lance would let two appends pass, each with the same id. It lets nothing pass beside a merge, which lists all fragments. Edits
    and deletes stay as they are: those of the same rows conflict, and those of others may pass, whichever comes first.
    """
    if not isinstance(transaction.operation, lance.LanceOperation.Append):
        return
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    first = (
        dataset.version * FRAGMENTS_A_COMMIT
    )  # never an id that an older fragment, or an index over it, has had
    new = [
        dataclasses.replace(fragment, id=id)
        for id, fragment in enumerate(transaction.operation.fragments, start=first)
    ]
    transaction.operation = lance.LanceOperation.Merge([*fragments, *new], dataset.lance_schema)


def exchange(dataset: lance.LanceDataset, ids: pa.Table, rows: pa.Table) -> lance.Transaction:
    """A transaction that puts `rows` in the place of those of `ids`, and conflicts with any other commit since `dataset`.

    So an undo is made: beside Lance's restore any commit may pass, and is undone unseen. Every fragment is named as changed, so that
    whatever another writer changes meets it.
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
