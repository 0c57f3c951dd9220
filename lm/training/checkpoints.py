"""Asynchronous, sharded checkpoints of the training state and the position in the data.

The newest verified checkpoint is restored.

workdir/run.json                                         run id, stored in every checkpoint
workdir/model/config.json, workdir/model/tokenizer/      files of the model
workdir/checkpoints/STEP/{state,data,carry}              written by Orbax atomically
workdir/checkpoints/STEP/digests-PART-of-PARTS           of every file, written after Orbax
workdir/digests-PART-of-PARTS                            of config.json and model/
"""

import dataclasses
import logging
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lm.data.source import Carry
from lm.distributed.sharding import path_name
from lm.training.state import TrainState
from lm.weights.runs import carried, digests
from lm.weights.runs import steps as step_folders
from lm.weights.runs.paths import Folder
from lm.weights.runs.steps import CheckpointError, folder_of, steps
from lm.weights.runs.weights import read_arrays

log = logging.getLogger(__name__)

SLICE_BYTES = 2**20  # from this size on, a replicated array is split among its devices for saving


@dataclasses.dataclass(frozen=True)
class Restored:
    """Restored checkpoint.

    step: updates done. state: on the mesh. data and carry: position of the source, and its arrays.
    """

    step: int
    state: TrainState
    data: dict
    carry: dict[str, np.ndarray]


class Checkpoints:
    """Writer of a run's checkpoints, which keeps the newest `keep`.

    One write may be in flight. Its failure is raised by the next `save`, `check` or `close`.
    """

    def __init__(self, workdir: str | Folder, keep: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._directory = folder_of(workdir)
        self._id = step_folders.keep_run_id(workdir) if jax.process_index() == 0 else ""
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=options,
            item_handlers={
                "state": _handler(),
                "data": ocp.JsonCheckpointHandler(),
                "carry": ocp.PyTreeCheckpointHandler(),
            },
        )
        self._last: int | None = None
        self._digesting: _Digesting | None = None
        self._closed = False

    def save(self, step: int, state: TrainState, data: dict, carry: Carry | None = None) -> None:
        """Start writing; return when the state may change. An existing step is not rewritten."""
        if step == self._last or step in self._manager.all_steps():
            return
        self.wait()
        about = {"step": step, "run": self._id, "data": data}
        items: dict[str, Any] = {"state": ocp.args.PyTreeSave(_as_dict(state))}
        if carry:
            about["carry"], arrays = carried.split(carry)
            items |= {"carry": ocp.args.PyTreeSave(arrays)} if arrays else {}
        items["data"] = ocp.args.JsonSave(about)
        self._guard(lambda: self._manager.save(step, args=ocp.args.Composite(**items), force=True))
        self._last = step
        self._digesting = _Digesting(self._directory / str(step))

    def check(self) -> None:
        """Raise CheckpointError when a write in flight has failed."""
        self._guard(self._manager.check_for_errors)

    def wait(self) -> None:
        """Wait until everything is written, including digests."""
        try:
            self._guard(self._manager.wait_until_finished)
        finally:
            if self._digesting is not None:
                digesting, self._digesting = self._digesting, None
                self._guard(digesting.finish)

    def verify(self, state: TrainState) -> None:
        """Verify the step saved last: files against their digests, shapes and dtypes of arrays.

        Waits for the write. Raises CheckpointError when the step could not be restored.
        """
        self.wait()
        if self._last is not None:
            step_folders.together("digests written")  # each process has written a share of them
            folder = self._directory / str(self._last)
            if problem := step_folders.problem(folder, self._id, shared=True):
                raise CheckpointError(
                    f"{folder} was saved and cannot be restored: {problem}. Check the disk, and "
                    "start the same command again"
                )
            _refuse_other_arrays(folder, step_folders.shapes(folder), _as_dict(state))

    def close(self) -> None:
        """Wait until everything is written, and close. Idempotent."""
        if not self._closed:
            self._closed = True
            self.wait()
            self._manager.close()

    def _guard(self, work) -> None:
        try:
            work()
        except Exception as e:  # any error of the storage: full disk, missing permissions, ...
            newest = max(
                (s for s in steps(self._directory.parent) if s != self._last), default=None
            )
            raise CheckpointError(
                f"a checkpoint could not be written to {self._directory} ({type(e).__name__}: "
                f"{str(e).splitlines()[0] if str(e) else ''}); "
                f"the last one there is step {newest}: make room or give access, and start the "
                "same command again"
            ) from e


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Handler of the state: each device copies its share of a large replicated array to the host.

    A program is compiled for every shape that is split, which small arrays are not worth.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class _Digesting:
    """Thread that writes this process's share of a step's digests after Orbax commits the step."""

    def __init__(self, folder: Folder):
        self._folder, self._over, self._error = folder, threading.Event(), None
        self._thread = threading.Thread(target=self._run, daemon=True, name="digests")
        self._thread.start()

    def _run(self) -> None:
        try:
            while not (
                there := (self._folder / step_folders.COMMITTED).exists()
            ) and not self._over.wait(0.1):
                pass
            if there or (self._folder / step_folders.COMMITTED).exists():
                digests.write(self._folder, jax.process_index(), jax.process_count())
        except Exception as e:
            self._error = e

    def finish(self) -> None:
        """Wait for the digests, unless the step was not committed. Raises errors of the storage."""
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


def restore(workdir: str | Folder, abstract: TrainState) -> Restored | None:
    """Restore the newest verified checkpoint, sharded as `abstract`; None if there is none.

    A checkpoint that is incomplete, differs from its digests, or has another run id or step is
    logged and renamed, never deleted. One without digests, from an earlier version, is used with a
    warning. Raises CheckpointError when none can be read, and when the arrays of one do not match
    `abstract`.
    """
    identity = step_folders.run_id(workdir)
    rejected: list[tuple[Folder, str]] = []
    result = None
    for folder in step_folders.newest_first(workdir):
        if problem := step_folders.problem(folder, identity, shared=True):
            rejected.append((folder, problem))
            continue
        _refuse_other_arrays(folder, step_folders.shapes(folder), _as_dict(abstract))
        try:
            state, problem = TrainState(**read_arrays(folder, _as_dict(abstract))), ""
            about = step_folders.saved_with(folder)
            carry = carried.read(folder, about.get("carry", {}))
            if int(state.step) != int(folder.name):
                problem = f"its arrays are of step {int(state.step)}"
        except Exception as e:
            problem = (
                f"its arrays cannot be read ({type(e).__name__}: "
                f"{(str(e).splitlines() or [''])[0][:200]})"
            )
        if problem := step_folders.agreed(problem):
            rejected.append((folder, problem))
            continue
        result = Restored(int(folder.name), state, about["data"], carry)
        break
    for folder, reason in rejected:
        log.warning("checkpoint %s is not used: %s", folder, reason)
    damaged = [folder for folder, _ in rejected if not step_folders.missing(folder)]
    if result is None and damaged:
        listed = "; ".join(f"{folder.name}: {reason}" for folder, reason in rejected)
        raise CheckpointError(
            f"no checkpoint in {folder_of(workdir)} can be read ({listed}). Put back a good "
            "copy, or move that folder away to begin again"
        )
    step_folders.set_aside([folder for folder, _ in rejected])
    return result


def _as_dict(state: TrainState) -> dict:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _refuse_other_arrays(folder: Folder, saved: dict[str, tuple], abstract: dict) -> None:
    """Raise CheckpointError when names, shapes or dtypes differ.

    Orbax would cast another dtype silently, and its message about another shape is unclear.
    """
    wanted = {
        path_name(path): (x.shape, jnp.dtype(x.dtype))
        for path, x in jax.tree_util.tree_leaves_with_path(abstract)
    }
    show = lambda entry: "nothing" if entry is None else f"{entry[1]}{list(entry[0])}"
    changed = [
        f"  {name}: {show(saved.get(name))} in the checkpoint, {show(wanted.get(name))} expected"
        for name in sorted(
            saved.keys() | wanted.keys(), key=lambda name: (not name.startswith("params/"), name)
        )
        if saved.get(name) != wanted.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{folder} does not fit this model and optimizer:\n" + "\n".join(changed[:20])
        )
