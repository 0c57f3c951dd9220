"""File of answers that are written as they come, so that a later evaluation can reuse them."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

SAMPLED = 64  # values of each array in the fingerprint of a model


def fingerprint(model, params: dict, max_new_tokens: int) -> str:
    """16 hex digits: hash of what affects a greedy answer besides the prompt.

    It covers the configuration, the budget and some values of every array.
    """
    found = hashlib.sha256(f"{model.config!r} {max_new_tokens}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = leaf.reshape(-1)
        found.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        found.update(np.asarray(values[:: max(1, values.size // SAMPLED)]).tobytes())
    return found.hexdigest()[:16]


def read(path: pathlib.Path, fingerprint: str) -> list[dict[str, Any]]:
    """Read the rows of an earlier evaluation with this fingerprint; [] if there is no file.

    Removes an incomplete last line from the file. Raises ValueError, and leaves the file as it is,
    when a row was not written by the same model with the same budget.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    complete = [line for line in lines if line.endswith("\n")]
    rows = [_row(line) for line in complete]
    if any(row.get("fingerprint") != fingerprint for row in rows):
        raise ValueError(
            f"{path} holds answers of another model or with another --max-new-tokens, or is no "
            "file of answers: give another file, or delete it"
        )
    if len(complete) < len(lines):
        path.write_text("".join(complete), encoding="utf-8")
    return rows


def append(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to the file, one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
