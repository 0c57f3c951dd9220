"""Step folders of a run: which are complete, verified, and of this run."""

import glob
import json
import logging
import re
import uuid
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lm.distributed.sharding import path_name
from lm.models.config import ConfigError
from lm.weights.runs import digests
from lm.weights.runs.paths import Folder, resolve, write_atomically

STEP = re.compile(
    r"0|[1-9][0-9]{0,17}", re.ASCII
)  # unlike str.isdigit() and int(), excludes "²", "٣" and "007"
COMMITTED = "commit_success.txt"  # Orbax's marker of a complete step
SHOWN = 240  # bytes of a problem that are exchanged between processes

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """Unusable checkpoint. The message names it and says what to do."""


def folder_of(workdir: str | Folder) -> Folder:
    """Folder of a run's checkpoints.

    Raises ConfigError for a path that Orbax would treat as a glob.
    """
    folder = resolve(workdir) / "checkpoints"
    if glob.escape(str(folder)) != str(folder) or "\\" in str(folder):
        raise ConfigError(
            f"{workdir}: a run folder cannot have any of * ? [ \\ in its path, which is "
            f"{folder.parent}: Orbax, which reads checkpoints, "
            "takes it for a pattern; choose another name"
        )
    return folder


def steps(workdir: str | Folder) -> list[int]:
    """Steps with complete checkpoints, ascending."""
    return sorted(
        int(d.name) for d in _folders(workdir) if STEP.fullmatch(d.name) and not missing(d)
    )


def newest_first(workdir: str | Folder) -> list[Folder]:
    """Folders that Orbax may take for a step, newest first, after those without a valid name."""
    return sorted(
        _folders(workdir),
        key=lambda d: (not STEP.fullmatch(d.name), int(d.name) if STEP.fullmatch(d.name) else 0),
        reverse=True,
    )


def missing(folder: Folder) -> str:
    """First missing file of a checkpoint, or ''."""
    for name in ("_CHECKPOINT_METADATA", "state/_METADATA", "data/metadata"):
        if not (folder / name).is_file():
            return name
    return ""


def problem(folder: Folder, run: str, shared: bool = False) -> str:
    """Reason why a step cannot be used, or ''.

    run: id of the run, "" if unknown. shared: each process verifies a share of the files, and all
    return the same result. A step without digests is used with a warning.
    """
    if not STEP.fullmatch(folder.name):
        return "its name is not a step number in plain digits"
    if name := missing(folder):
        return f"it is incomplete: it has no {name}"
    part, parts = (jax.process_index(), jax.process_count()) if shared else (0, 1)
    differing = None
    try:
        differing = digests.problems(folder, part, parts)
        found = (
            "; ".join(differing[:3])
            if differing
            else _other(saved_with(folder), int(folder.name), run)
        )
        found = found or ("" if shapes(folder) else "it holds no arrays")
    except Exception as e:  # damage may raise any exception
        found = f"its description cannot be read ({type(e).__name__})"
    if not (found := agreed(found, shared)) and differing is None:
        log.warning(
            "checkpoint %s cannot be verified: it has no digests (an earlier version saved it, "
            "or was killed as it did)",
            folder,
        )
    return found


def agreed(found: str, shared: bool = True) -> str:
    """Problem found by any process, the same on all; '' if there is none."""
    if not shared or jax.process_count() == 1:
        return found
    from jax.experimental import multihost_utils

    mine = np.frombuffer(found.encode()[:SHOWN].ljust(SHOWN, b"\0"), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(mine))
    return next(
        (text for row in every if (text := bytes(row).rstrip(b"\0").decode(errors="replace"))), ""
    )


def saved_with(folder: Folder) -> dict:
    """Metadata saved with a step: step, run (id), data (position in the data).

    An earlier version saved only the last.
    """
    about = json.loads((folder / "data" / "metadata").read_text())
    if not isinstance(about, dict):
        raise ValueError("no object")
    return (
        about
        if "run" in about
        else {"step": about.get("next_index", int(folder.name)), "run": "", "data": about}
    )


def shapes(folder: Folder) -> dict[str, tuple]:
    """Path -> (shape, dtype) of every saved array."""
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder / "state")).tree
    return {
        path_name(path): (tuple(x.shape), jnp.dtype(x.dtype))
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def set_aside(folders: list[Folder], why: str = "unreadable") -> None:
    """Rename folders to NAME.unreadable, or with another suffix. Synchronises all processes."""
    if jax.process_index() == 0:
        for folder in folders:
            number = 0
            while (aside := folder.with_name(f"{folder.name}.{why}{number or ''}")).exists():
                number += 1
            folder.rename(aside)
    together("checkpoints set aside")


def together(what: str) -> None:
    """Returns when all processes are here; `what` names the place, the same on all."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def run_id(workdir: str | Folder) -> str:
    """Id of a run, from run.json or else from its newest checkpoint with one; else ""."""
    file = resolve(workdir) / "run.json"
    if file.exists():
        try:
            kept = json.loads(file.read_bytes())
            if kept["crc32"] == zlib.crc32(kept["id"].encode()):
                return kept["id"]
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        log.warning("%s is damaged: the run's id is taken from its newest checkpoint", file)
    for step in reversed(steps(workdir)):
        folder = folder_of(workdir) / str(step)
        try:
            if not digests.problems(folder) and (found := saved_with(folder)["run"]):
                return found
        except Exception:
            continue
    return ""


def keep_run_id(workdir: str | Folder) -> str:
    """Id of the run, written to run.json. A run without an id gets a new one."""
    found, folder = run_id(workdir) or uuid.uuid4().hex, resolve(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / "run.json", json.dumps({"id": found, "crc32": zlib.crc32(found.encode())})
    )
    return found


def _other(about: dict[str, Any], step: int, run: str) -> str:
    if about["step"] != step:
        return f"it was saved as step {about['step']}"
    if run and about["run"] not in ("", run):
        return f"it is of another run ({about['run'][:8]}, this one is {run[:8]})"
    return ""


def _folders(workdir: str | Folder) -> list[Folder]:
    folder = folder_of(workdir)
    return [d for d in folder.iterdir() if d.name.isdigit()] if folder.is_dir() else []
