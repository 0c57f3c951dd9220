"""Checkpoints: asynchronous, sharded, of the state and of where the data stands; restored from the newest that is verified.

workdir/run.json                                         the run's id, which every step carries
workdir/model/config.json, workdir/model/tokenizer/      what the weights mean
workdir/checkpoints/STEP/{state,data}                    written by Orbax: whole, or under a temporary name
workdir/checkpoints/STEP/digests-PART-of-PARTS           of every file of the step, written when Orbax is done; workdir/digests-* likewise
"""

import dataclasses
import json
import logging
import pathlib
import tempfile
import threading
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from lm.adaptation import plan
from lm.adaptation.lora import Lora
from lm.data import templates
from lm.data.templates import Template
from lm.distributed.rules import by_path
from lm.distributed.sharding import path_name
from lm.models import build
from lm.models.config import ModelConfig
from lm.training import digests
from lm.training import steps as step_folders
from lm.training.documents import as_trained
from lm.training.paths import Folder, is_remote, local_copy, resolve, upload, write_atomically
from lm.training.state import TrainState, average_of
from lm.training.steps import CheckpointError, folder_of, steps

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """step: updates done.   state: TrainState on the mesh.   data: the data iterator's state."""

    step: int
    state: TrainState
    data: dict


class Checkpoints:
    """Writes checkpoints of a run, keeps the newest `keep`. One may be in flight: the next save, `check` or `close` reports its failure."""

    def __init__(self, workdir: str | Folder, keep: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._directory = folder_of(workdir)
        self._id = step_folders.keep_run_id(workdir) if jax.process_index() == 0 else ""
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._last: int | None = None
        self._digesting: _Digesting | None = None
        self._closed = False

    def save(self, step: int, state: TrainState, data: dict) -> None:
        """Starts writing; returns when the state may change again. A step that is there already is left alone."""
        if step == self._last or step in self._manager.all_steps():
            return
        self.wait()
        about = {"step": step, "run": self._id, "data": data}
        self._guard(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_as_dict(state)), data=ocp.args.JsonSave(about)
                ),
                force=True,
            )
        )
        self._last = step
        self._digesting = _Digesting(self._directory / str(step))

    def check(self) -> None:
        """Raises CheckpointError when a write that was under way has failed."""
        self._guard(self._manager.check_for_errors)

    def wait(self) -> None:
        """Returns when everything is written, digests too."""
        try:
            self._guard(self._manager.wait_until_finished)
        finally:
            if self._digesting is not None:
                digesting, self._digesting = self._digesting, None
                self._guard(digesting.finish)

    def verify(self, state: TrainState) -> None:
        """Waits, and reads the step last saved back: its files against their digests, its arrays' shapes and dtypes against `state`'s.

        Raises CheckpointError when it could not be restored.
        """
        self.wait()
        if self._last is not None:
            folder = self._directory / str(self._last)
            if problem := step_folders.problem(folder, self._id, shared=True):
                raise CheckpointError(
                    f"{folder} was saved and cannot be restored: {problem}. Check the disk, and start the same command again"
                )
            _refuse_other_arrays(folder, step_folders.shapes(folder), _as_dict(state))

    def close(self) -> None:
        """Waits until everything is written; does nothing the second time."""
        if not self._closed:
            self._closed = True
            self.wait()
            self._manager.close()

    def _guard(self, work) -> None:
        try:
            work()
        except Exception as e:  # whatever the storage raises: full disk, missing rights, ...
            newest = max(
                (s for s in steps(self._directory.parent) if s != self._last), default=None
            )
            raise CheckpointError(
                f"a checkpoint could not be written to {self._directory} ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}); "
                f"the last one there is step {newest}: make room or give access, and start the same command again"
            ) from e


class _Digesting:
    """Writes this process's share of the digests of a step, in a thread, once Orbax has committed the step."""

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
        """Waits for the digests, or for nothing where the step was not committed. Raises what the storage raised."""
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


def restore(workdir: str | Folder, abstract: TrainState) -> Restored | None:
    """The newest checkpoint that is verified, placed as `abstract` says; None when there is none to read.

    One that is incomplete, differs from its digests, or is of another run or step is logged and set aside under another name (never
    deleted). One without digests, saved by an earlier version, is used with a warning. Raises CheckpointError when none of those there can
    be read, and when one holds other arrays than `abstract`.
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
            state, problem = TrainState(**_read(folder, _as_dict(abstract))), ""
            if int(state.step) != int(folder.name):
                problem = f"its arrays are of step {int(state.step)}"
        except Exception as e:
            problem = f"its arrays cannot be read ({type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]})"
        if problem := step_folders.agreed(problem):
            rejected.append((folder, problem))
            continue
        result = Restored(int(folder.name), state, step_folders.saved_with(folder)["data"])
        break
    for folder, reason in rejected:
        log.warning("checkpoint %s is not used: %s", folder, reason)
    damaged = [folder for folder, _ in rejected if not step_folders.missing(folder)]
    if result is None and damaged:
        listed = "; ".join(f"{folder.name}: {reason}" for folder, reason in rejected)
        raise CheckpointError(
            f"no checkpoint in {folder_of(workdir)} can be read ({listed}). Put back a good copy, or move that folder away to begin again"
        )
    step_folders.set_aside([folder for folder, _ in rejected])
    return result


def load_params(
    workdir: str | Folder, step: int | None = None, shardings=None
) -> tuple[Any, dict, Any]:
    """(model, params, tokenizer) of a run folder, from its newest checkpoint or that of `step`. Params are plain nested dicts.

    `shardings`: a tree like params of where to put them; default: the first local device. Raises CheckpointError.
    """
    from lm.tokenizer import load_tokenizer

    model, lora = build(load_model_config(workdir)), _lora(workdir)
    shapes = _parameter_shapes(model)
    if shardings is None:
        shardings = jax.tree.map(
            lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), shapes
        )
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    params = _first_good(workdir, step, lambda folder: _read_weights(folder, abstract, model, lora))
    with local_copy(_model_folder(workdir) / "tokenizer") as files:
        try:
            return (
                model,
                params,
                as_trained(
                    load_tokenizer(str(files)), _section(workdir, "objective").get("name", "")
                ),
            )
        except Exception as e:  # whatever the tokenizer's library raises
            raise CheckpointError(
                f"{files} cannot be read ({type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]})"
            ) from e


def load_adapters(workdir: str | Folder) -> tuple[Any, dict, Lora, str]:
    """(model, adapters, their description, the base as the run's config names it) of the newest checkpoint. Raises CheckpointError."""
    model, lora = build(load_model_config(workdir)), _lora(workdir)
    if lora is None:
        raise CheckpointError(f"{workdir} is no run with adapters: adaptation.lora.rank is 0 there")
    shapes = _adapter_shapes(
        model,
        lora,
        _parameter_shapes(model),
        jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
    )
    adapters = _first_good(workdir, None, lambda folder: _read_averaged(folder, shapes))
    return model, adapters, lora, _object(resolve(workdir) / "config.json")["init_from"]


def _first_good(workdir: str | Folder, step: int | None, read: Any) -> Any:
    """What `read` makes of the newest checkpoint that is verified, or of that of `step`. Raises CheckpointError where there is none."""
    available, identity = steps(workdir), step_folders.run_id(workdir)
    if not available:
        raise CheckpointError(
            f"{workdir} has no complete checkpoint yet (looked in {folder_of(workdir)}); train it first"
        )
    if step is not None and step not in available:
        raise CheckpointError(
            f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, available))}"
        )
    reasons = []
    for candidate in [step] if step is not None else reversed(available):
        folder = folder_of(workdir) / str(candidate)
        problem = step_folders.problem(folder, identity)
        try:
            if not problem:
                return read(folder)
        except Exception as e:
            problem = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
        reasons.append(f"step {candidate}: {problem}")
        log.warning("checkpoint %s is not used: %s", folder, problem)
    raise CheckpointError(f"no checkpoint of {workdir} can be read ({'; '.join(reasons)})")


def check_model(workdir: str | Folder, config: ModelConfig) -> None:
    """Raises CheckpointError, with a diff, when the run folder holds a run of another model."""
    path = _model_folder(workdir) / "config.json"
    if not path.exists():
        return
    there, wanted = _object(path), _plain(config)
    changed = [
        f"  model.{name}: {there.get(name)!r} in the run, {wanted.get(name)!r} now"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name) and name not in _COMPUTE
    ]
    if changed:
        raise CheckpointError(
            f"{workdir} holds a run of another model:\n"
            + "\n".join(changed)
            + "\nuse the old values, or another --workdir"
        )


def save_model(
    workdir: str | Folder, config: ModelConfig, tokenizer, template: Template | None = None
) -> None:
    """Writes what the weights mean beside them. template: that which spelled the records they learned from."""
    folder = _model_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if template is not None:
        write_atomically(
            folder / "template.json", json.dumps(templates.remember(template), indent=1)
        )
    if tokenizer is not None and is_remote(folder):
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer.save_pretrained(temporary)
            upload(pathlib.Path(temporary), folder / "tokenizer")
    elif tokenizer is not None:
        tokenizer.save_pretrained(str(folder / "tokenizer"))
    write_atomically(folder / "config.json", json.dumps(_plain(config), indent=1))
    there = [
        at
        for at in (
            *folder.iterdir(),
            *(folder / "tokenizer").glob("*"),
            folder.parent / "config.json",
        )
        if at.is_file()
    ]
    digests.write(
        folder.parent,
        files=[at.as_posix().removeprefix(f"{folder.parent.as_posix()}/") for at in there],
    )


def check_template(workdir: str | Folder, template: Template | None) -> None:
    """Raises CheckpointError when the run folder holds a run with another template."""
    there, now = kept_template(workdir), None if template is None else templates.remember(template)
    if there is not None and (
        now is None or any(there.get(name) != now[name] for name in ("name", "stop", "fingerprint"))
    ):
        raise CheckpointError(
            f"{workdir} holds a run with another template: {_described(there)} in the run, {_described(now)} now; use the old one, or "
            "another --workdir"
        )


def kept_template(workdir: str | Folder) -> dict | None:
    """What the run folder remembers of its template (lm.data.templates.remember); None without one."""
    path = _model_folder(workdir) / "template.json"
    return _object(path) if path.exists() else None


def _described(kept: dict | None) -> str:
    return "none" if kept is None else f"{kept['name']} {kept['options']} ({kept['fingerprint']})"


def load_model_config(workdir: str | Folder) -> ModelConfig:
    """The ModelConfig a run folder was trained with. Raises CheckpointError when the folder is not one."""
    path = _model_folder(workdir) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{workdir} is not a run folder: it has no model/config.json")
    if differing := digests.problems(path.parent.parent):
        raise CheckpointError(
            f"{workdir}: {'; '.join(differing)}. Put back a good copy, or start its training command again, which writes these files anew; "
            f"if you changed them on purpose, delete {path.parent.parent / 'digests-0-of-1'}"
        )
    try:
        return ModelConfig(**{name: _tuples(value) for name, value in _object(path).items()})
    except TypeError as e:
        raise CheckpointError(
            f"{path} does not describe a model of this version ({e}); put back a good copy"
        ) from e


def _object(path: Folder) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as e:
        raise CheckpointError(
            f"{path} is damaged: it is not JSON ({e}); put back a good copy, or delete it to have it written anew"
        ) from e
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} is damaged: it holds no object; put back a good copy, or delete it to have it written anew"
        )
    return found


def _tuples(value):
    """JSON's lists as the tuples that ModelConfig holds."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(config: ModelConfig) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))


_COMPUTE = ("dtype", "remat", "dropout")  # may differ between the parts of one run


def _model_folder(workdir) -> Folder:
    return resolve(workdir) / "model"


def _as_dict(state: TrainState) -> dict:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _parameter_shapes(model):
    from lm.batch import Batch

    return jax.eval_shape(lambda: model.init(jax.random.key(0), Batch.of([[0, 0]]))["params"])


def _refuse_other_arrays(folder: Folder, saved: dict[str, tuple], abstract: dict) -> None:
    """Orbax would cast another dtype silently, and say little about another shape."""
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


def _read(folder: Folder, abstract: dict, partial: bool = False) -> dict:
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / "state"), args=args)


def _section(workdir: str | Folder, name: str) -> dict:
    """A section of the run's config, {} without one."""
    path = resolve(workdir) / "config.json"
    return (_object(path).get(name) or {}) if path.exists() else {}


def _lora(workdir: str | Folder) -> Lora | None:
    """The adapters that the run in a folder trains, told by its config, or None."""
    section = _section(workdir, "adaptation")
    return plan.lora_of(section) if section else None


def _read_weights(folder: Folder, abstract: dict, model, lora: Lora | None) -> dict:
    """The model's params of a checkpoint, adapters merged."""
    if lora is None:
        return _read_averaged(folder, abstract)
    adaptation = plan.Plan(model.logical_axes(), lora)
    placed = jax.tree.leaves(abstract)[0].sharding
    whole = (
        NamedSharding(placed.mesh, PartitionSpec()) if isinstance(placed, NamedSharding) else placed
    )
    adapters = _read_averaged(folder, _adapter_shapes(model, lora, abstract, whole))
    fixed = _read(folder, {"fixed": {"base": abstract}}, partial=True)["fixed"]
    return jax.jit(adaptation.weights, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(
        adapters, fixed
    )


def _adapter_shapes(model, lora: Lora, base: dict, place) -> dict:
    shapes = jax.eval_shape(
        lambda p: plan.Plan(model.logical_axes(), lora).start(p, jax.random.key(0))[0], base
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _read_averaged(folder: Folder, abstract: dict) -> dict:
    """The params of a checkpoint; where it holds their moving average, that."""
    saved, of = step_folders.shapes(folder), by_path(abstract)
    averaged = {
        n: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding)
        for n, x in of.items()
        if f"ema/{n}" in saved
    }
    if not averaged:
        return _read(folder, {"params": abstract}, partial=True)["params"]
    wanted = {"params": abstract, "ema": flax.traverse_util.unflatten_dict(averaged, sep="/")}
    read = _read(folder, wanted, partial=True)
    return average_of(read["params"], read["ema"])
