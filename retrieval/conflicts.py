"""Conflicts: two writers on an object store, where no lock can be held, must not both commit on top of the same version."""

import dataclasses

import lance
from lance.commit import CommitConflictError

from retrieval.history import History, properties

FRAGMENTS_A_COMMIT = 1_000  # at most; of a million rows each


def exclusive(transaction: lance.Transaction, dataset: lance.LanceDataset) -> None:
    """Makes a transaction that adds rows conflict with any other commit since `dataset`.

    Lance would let two appends pass, each with the same id. It lets nothing pass beside a merge, which lists all fragments. Edits
    and deletes stay as they are: those of the same rows conflict, and those of others may pass, whichever comes first.
    """
    if not isinstance(transaction.operation, lance.LanceOperation.Append):
        return
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    first = dataset.version * FRAGMENTS_A_COMMIT  # never an id that an older fragment, or an index over it, has had
    new = [dataclasses.replace(fragment, id=id) for id, fragment in enumerate(transaction.operation.fragments, start=first)]
    transaction.operation = lance.LanceOperation.Merge([*fragments, *new], dataset.lance_schema)


def bring_back(dataset: lance.LanceDataset, history: History, version: int) -> None:
    """After a restore that was meant for `version` and came after another commit, which it undid: nothing conflicts with a restore.

    Brings that commit back, by an undo of the restore, and raises the conflict that Lance did not.
    """
    lost = dataset.version - 1
    restore = lance.Transaction(dataset.version, lance.LanceOperation.Restore(lost))
    touched, why = sorted(history.touched_since(version)), f"version {lost} came in between"
    restore.transaction_properties = properties("undo", touched, None, why, history.state(lost).undo_to)
    lance.LanceDataset.commit(dataset, restore)
    raise CommitConflictError(why)
