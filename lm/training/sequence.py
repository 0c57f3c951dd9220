"""Facts that determine the order of a run's rows, saved and compared when a run is resumed."""

import zlib
from typing import Any

import ml_collections
import numpy as np

from lm.data.mixtures import Mixture
from lm.data.packing import Packed
from lm.models.config import ConfigError, nearest
from lm.training import run_folder
from lm.training.checkpoints import CheckpointError, Restored
from lm.training.paths import Folder

FILES = "data.files"  # name of the fact about the content of the rows
OMITTED = (
    "data.cache",
    "data.max_bad_share",
    "data.max_long",
)  # fields of config.data that never change a row
LOSS = (
    "objective.chunk",
    "objective.label_smoothing",
    "objective.z_loss",
    "objective.contrastive.",
    "objective.instruct.",
)
ORDER = (
    "seed",
    "objective.",
    "data.temperature",
    "data.mixture.",
)  # fields that change the sequence even if the rows are the same
BLOCK = 2**16  # rows read at a time

Facts = dict[str, Any]


def facts(config: ml_collections.ConfigDict, packed: Packed | Mixture) -> Facts:
    """Name -> JSON value of config fields that affect the sequence, and digests of the rows."""
    mixed = isinstance(packed, Mixture)
    contents = (
        {f"data.mixture.{part.name}.files": part.packed for part in packed.parts}
        if mixed
        else {FILES: packed}
    )
    return fields(config.to_dict()) | {name: _digest(rows) for name, rows in contents.items()}


def fields(config: dict) -> Facts:
    """Facts from the config alone, without digests of rows."""
    own = f"objective.{config.get('objective', {}).get('name')}."
    flat = dict(
        _flat(
            {
                name: config[name]
                for name in ("seed", "length", "data", "objective")
                if name in config
            }
        )
    )
    return {
        name: value
        for name, value in flat.items()
        if name not in OMITTED
        and not _is_contents(name)
        and not name.startswith(LOSS)
        and (not name.startswith("objective.") or name == "objective.name" or name.startswith(own))
    }


def resumed(
    config: ml_collections.ConfigDict, workdir: Folder, now: Facts, restored: Restored
) -> list[str]:
    """Changes in what a resumed run reads, as from `check`, with the same errors."""
    saved = restored.data.get("sequence")
    if (
        saved is None and (before := run_folder.read_config(workdir)) is not None
    ):  # saved by an earlier version, which counts batches
        if "next_index" in restored.data and before.get("batch_size") != config.batch_size:
            raise CheckpointError(
                f"{workdir}: step {restored.step} was saved by an earlier version, which counts "
                "batches: it continues with "
                f"batch_size={before.get('batch_size')} alone, and batch_size is "
                f"{config.batch_size}"
            )
        saved = fields(before)
    return check(saved or now, now, config.resume.allow, restored.step)


def check(saved: Facts, now: Facts, allow: str, step: int) -> list[str]:
    """Changes since `step` was saved that `allow` permits, as lines "name: old -> new".

    allow: comma-separated names. A changed field that did not change the rows does not count, nor
    does a field that only one of two versions of this program has.
    Raises CheckpointError for a change that is not allowed, and ConfigError for an unknown name in
    `allow`.
    """
    allowed = {name.strip() for name in allow.split(",")} - {""}
    for name in allowed:
        if name not in saved | now:
            raise ConfigError(
                f"resume.allow: {name!r} is unknown{nearest(name, saved | now)}; one of "
                f"{', '.join(sorted(saved | now))}"
            )
    known = any(map(_is_contents, saved))  # an earlier version saved no digests of rows
    both = [
        name
        for name in saved | now
        if name.startswith("data.mixture.") or name in saved.keys() & now.keys()
    ]
    names = [name for name in both if saved.get(name) != now.get(name) and not _is_contents(name)]
    contents = [
        name
        for name in saved | now
        if known and _is_contents(name) and saved.get(name) != now.get(name)
    ]
    settings = [name for name in names if contents or not known or name.startswith(ORDER)]
    changed = settings or contents  # a changed setting explains changed rows of the same files
    lines = {
        name: f"{name}: {_shown(saved.get(name))} -> {_shown(now.get(name))}" for name in changed
    }
    if refused := [name for name in changed if name not in allowed]:
        raise CheckpointError(
            f"the run would read other rows than the one that saved step {step}, and skip or "
            "repeat some:\n  "
            + "\n  ".join(lines[name] for name in refused)
            + "\nuse the old values, another --workdir, or continue with the new ones: "
            f"--config.resume.allow={','.join(changed)}"
        )
    return list(lines.values())


def _is_contents(name: str) -> bool:
    return name == FILES or (name.startswith("data.mixture.") and name.endswith(".files"))


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str) and value.startswith("rows ") else repr(value)


def _digest(packed: Packed) -> str:
    total = 0
    arrays = {
        "tokens": packed.tokens,
        "targets": packed.targets,
        "segments": packed.segments,
        **packed.extra,
    }
    for _, array in sorted(arrays.items()):
        for start in range(0, len(array), BLOCK):
            total = zlib.crc32(np.ascontiguousarray(array[start : start + BLOCK]).data, total)
    return f"rows {len(packed):,} with CRC-32 {total:08x}"


def _flat(tree: dict, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, list(value) if isinstance(value, tuple) else value))
    return found
