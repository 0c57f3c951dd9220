"""Checkpoints: asynchronous, sharded, of the state and of where the data stands; restored from the newest that can be read.

workdir/model/config.json, workdir/model/tokenizer/      what the weights mean
workdir/checkpoints/STEP/{state,data}                    written by Orbax: whole, or under a temporary name
"""

import dataclasses
import json
import logging
import pathlib
import tempfile
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
from lm.models import build
from lm.models.config import ModelConfig
from lm.training.paths import Folder, is_remote, local_copy, resolve, upload, write_atomically
from lm.training.rules import by_path
from lm.training.sharding import path_name
from lm.training.state import TrainState, average_of

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it, and what to do."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """step: updates done.   state: TrainState on the mesh.   data: the data iterator's state."""

    step: int
    state: TrainState
    data: dict


class Checkpoints:
    """Writes checkpoints of a run, keeps the newest `keep`. One may be in flight: the next save, `check` or `close` reports its failure."""

    def __init__(self, workdir: str | Folder, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True)
        self._directory = _folder(workdir)
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._last: int | None = None
        self._closed = False

    def save(self, step: int, state: TrainState, data: dict) -> None:
        """Starts writing; returns when the state may change again. A step that is there already is left alone."""
        if step == self._last or step in self._manager.all_steps():
            return
        self._guard(
            lambda: self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(_as_dict(state)), data=ocp.args.JsonSave(data)), force=True
            )
        )
        self._last = step

    def check(self) -> None:
        """Raises CheckpointError when a write that was under way has failed."""
        self._guard(self._manager.check_for_errors)

    def wait(self) -> None:
        """Returns when everything is written."""
        self._guard(self._manager.wait_until_finished)

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
            newest = max((s for s in steps(self._directory.parent) if s != self._last), default=None)
            raise CheckpointError(
                f"a checkpoint could not be written to {self._directory} ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}); "
                f"the last one there is step {newest}: make room or give access, and start the same command again"
            ) from e


def steps(workdir: str | Folder) -> list[int]:
    """The steps whose checkpoints are complete, ascending."""
    return sorted(int(d.name) for d in _step_folders(workdir) if not _missing(d))


def restore(workdir: str | Folder, abstract: TrainState) -> Restored | None:
    """The newest checkpoint that can be read, placed as `abstract` says; None when there is none to read.

    One that is incomplete or unreadable is logged and set aside under another name (never deleted). Raises CheckpointError when none of
    those there can be read, and when one holds other arrays than `abstract`.
    """
    found = sorted(_step_folders(workdir), key=lambda d: int(d.name), reverse=True)
    rejected: list[tuple[Folder, str]] = []
    result = None
    for folder in found:
        if missing := _missing(folder):
            rejected.append((folder, f"it is incomplete: it has no {missing}"))
            continue
        try:
            saved = _shapes(folder)
        except Exception as e:  # any damage shows as any exception
            rejected.append((folder, f"its description cannot be read ({type(e).__name__})"))
            continue
        _refuse_other_arrays(folder, saved, _as_dict(abstract))
        try:
            state, data = _read(folder, _as_dict(abstract)), _read_data(folder)
        except Exception as e:
            rejected.append((folder, f"its arrays cannot be read ({type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]})"))
            continue
        result = Restored(int(folder.name), TrainState(**state), data)
        break
    for folder, reason in rejected:
        log.warning("checkpoint %s is not used: %s", folder, reason)
    damaged = [folder for folder, _ in rejected if not _missing(folder)]
    if result is None and damaged:
        listed = "; ".join(f"{folder.name}: {reason}" for folder, reason in rejected)
        raise CheckpointError(
            f"no checkpoint in {_folder(workdir)} can be read ({listed}). Put back a good copy, or move that folder away to begin again"
        )
    _set_aside([folder for folder, _ in rejected])
    return result


def load_params(workdir: str | Folder, step: int | None = None, shardings=None) -> tuple[Any, dict, Any]:
    """(model, params, tokenizer) of a run folder, from its newest checkpoint or that of `step`. Params are plain nested dicts.

    `shardings`: a tree like params of where to put them; default: the first local device. Raises CheckpointError.
    """
    from lm.tokenizer import load_tokenizer

    model, lora = build(load_model_config(workdir)), _lora(workdir)
    available = steps(workdir)
    if not available:
        raise CheckpointError(f"{workdir} has no complete checkpoint yet (looked in {_folder(workdir)}); train it first")
    if step is not None and step not in available:
        raise CheckpointError(f"{workdir} has no checkpoint of step {step}; it has {', '.join(map(str, available))}")
    shapes = _parameter_shapes(model)
    if shardings is None:
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), shapes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    reasons = []
    for candidate in [step] if step is not None else reversed(available):
        folder = _folder(workdir) / str(candidate)
        try:
            params = _read_weights(folder, abstract, model, lora)
            with local_copy(_model_folder(workdir) / "tokenizer") as files:
                return model, params, load_tokenizer(str(files))
        except CheckpointError:
            raise
        except Exception as e:
            reasons.append(f"step {candidate}: {type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}")
            log.warning("checkpoint %s cannot be read: %s", folder, reasons[-1])
    raise CheckpointError(f"no checkpoint of {workdir} can be read ({'; '.join(reasons)})")


def load_adapters(workdir: str | Folder) -> tuple[Any, dict, Lora, str]:
    """(model, adapters, their description, the base as the run's config names it) of the newest checkpoint. Raises CheckpointError."""
    lora = _lora(workdir)
    if lora is None:
        raise CheckpointError(f"{workdir} is no run with adapters: adaptation.lora.rank is 0 there")
    if not (available := steps(workdir)):
        raise CheckpointError(f"{workdir} has no complete checkpoint yet (looked in {_folder(workdir)}); train it first")
    model, here = build(load_model_config(workdir)), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    adapters = _read_averaged(_folder(workdir) / str(available[-1]), _adapter_shapes(model, lora, _parameter_shapes(model), here))
    return model, adapters, lora, json.loads((resolve(workdir) / "config.json").read_text())["init_from"]


def check_model(workdir: str | Folder, config: ModelConfig) -> None:
    """Raises CheckpointError, with a diff, when the run folder holds a run of another model."""
    path = _model_folder(workdir) / "config.json"
    if not path.exists():
        return
    there, wanted = json.loads(path.read_text()), _plain(config)
    changed = [
        f"  model.{name}: {there.get(name)!r} in the run, {wanted.get(name)!r} now"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name) and name not in _COMPUTE
    ]
    if changed:
        raise CheckpointError(
            f"{workdir} holds a run of another model:\n" + "\n".join(changed) + "\nuse the old values, or another --workdir"
        )


def save_model(workdir: str | Folder, config: ModelConfig, tokenizer, template: Template | None = None) -> None:
    """Writes what the weights mean beside them. template: that which spelled the records they learned from."""
    folder = _model_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if template is not None:
        write_atomically(folder / "template.json", json.dumps(templates.remember(template), indent=1))
    if tokenizer is not None and is_remote(folder):
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer.save_pretrained(temporary)
            upload(pathlib.Path(temporary), folder / "tokenizer")
    elif tokenizer is not None:
        tokenizer.save_pretrained(str(folder / "tokenizer"))
    write_atomically(folder / "config.json", json.dumps(_plain(config), indent=1))


def check_template(workdir: str | Folder, template: Template | None) -> None:
    """Raises CheckpointError when the run folder holds a run with another template."""
    path = _model_folder(workdir) / "template.json"
    if not path.exists():
        return
    there, now = json.loads(path.read_text()), None if template is None else templates.remember(template)
    if there != now:
        raise CheckpointError(
            f"{workdir} holds a run with another template: {_described(there)} in the run, {_described(now)} now; use the old one, or "
            "another --workdir"
        )


def _described(kept: dict | None) -> str:
    return "none" if kept is None else f"{kept['name']} {kept['options']} ({kept['fingerprint']})"


def load_model_config(workdir: str | Folder) -> ModelConfig:
    """The ModelConfig a run folder was trained with. Raises CheckpointError when the folder is not one."""
    path = _model_folder(workdir) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{workdir} is not a run folder: it has no model/config.json")
    fields = json.loads(path.read_text())
    return ModelConfig(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value):
    """JSON's lists as the tuples that ModelConfig holds."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(config: ModelConfig) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))


_COMPUTE = ("dtype", "remat", "dropout")  # may differ between the parts of one run


def _folder(workdir) -> Folder:
    return resolve(workdir) / "checkpoints"


def _model_folder(workdir) -> Folder:
    return resolve(workdir) / "model"


def _step_folders(workdir) -> list[Folder]:
    folder = _folder(workdir)
    return [d for d in folder.iterdir() if d.name.isdigit()] if folder.is_dir() else []


def _missing(folder: Folder) -> str:
    """The first file of a whole checkpoint that is not there, or ''."""
    for name in ("_CHECKPOINT_METADATA", "state/_METADATA", "data/metadata"):
        if not (folder / name).is_file():
            return name
    return ""


def _set_aside(folders: list[Folder]) -> None:
    if jax.process_index() == 0:
        for folder in folders:
            number = 0
            while (aside := folder.with_name(f"{folder.name}.unreadable{number or ''}")).exists():
                number += 1
            folder.rename(aside)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("checkpoints set aside")


def _as_dict(state: TrainState) -> dict:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _parameter_shapes(model):
    from lm.batch import Batch

    return jax.eval_shape(lambda: model.init(jax.random.key(0), Batch.of([[0, 0]]))["params"])


def _shapes(folder: Folder) -> dict[str, tuple]:
    """Path -> (shape, dtype) of every saved array."""
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder / "state")).tree
    return {path_name(path): (tuple(x.shape), jnp.dtype(x.dtype)) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _refuse_other_arrays(folder: Folder, saved: dict[str, tuple], abstract: dict) -> None:
    """Orbax would cast another dtype silently, and say little about another shape."""
    wanted = {path_name(path): (x.shape, jnp.dtype(x.dtype)) for path, x in jax.tree_util.tree_leaves_with_path(abstract)}
    show = lambda entry: "nothing" if entry is None else f"{entry[1]}{list(entry[0])}"
    changed = [
        f"  {name}: {show(saved.get(name))} in the checkpoint, {show(wanted.get(name))} expected"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if changed:
        raise CheckpointError(f"{folder} does not fit this model and optimizer:\n" + "\n".join(changed[:20]))


def _read(folder: Folder, abstract: dict, partial: bool = False) -> dict:
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / "state"), args=args)


def _lora(workdir: str | Folder) -> Lora | None:
    """The adapters that the run in a folder trains, told by its config, or None."""
    path = resolve(workdir) / "config.json"
    section = json.loads(path.read_text()).get("adaptation") if path.exists() else None
    return plan.lora_of(section) if section else None


def _read_weights(folder: Folder, abstract: dict, model, lora: Lora | None) -> dict:
    """The model's params of a checkpoint, adapters merged."""
    if lora is None:
        return _read_averaged(folder, abstract)
    adaptation = plan.Plan(model.logical_axes(), lora)
    placed = jax.tree.leaves(abstract)[0].sharding
    whole = NamedSharding(placed.mesh, PartitionSpec()) if isinstance(placed, NamedSharding) else placed
    adapters = _read_averaged(folder, _adapter_shapes(model, lora, abstract, whole))
    fixed = _read(folder, {"fixed": {"base": abstract}}, partial=True)["fixed"]
    return jax.jit(adaptation.weights, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(adapters, fixed)


def _adapter_shapes(model, lora: Lora, base: dict, place) -> dict:
    shapes = jax.eval_shape(lambda p: plan.Plan(model.logical_axes(), lora).start(p, jax.random.key(0))[0], base)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _read_averaged(folder: Folder, abstract: dict) -> dict:
    """The params of a checkpoint; where it holds their moving average, that."""
    saved, of = _shapes(folder), by_path(abstract)
    averaged = {n: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding) for n, x in of.items() if f"ema/{n}" in saved}
    if not averaged:
        return _read(folder, {"params": abstract}, partial=True)["params"]
    wanted = {"params": abstract, "ema": flax.traverse_util.unflatten_dict(averaged, sep="/")}
    read = _read(folder, wanted, partial=True)
    return average_of(read["params"], read["ema"])


def _read_data(folder: Folder) -> dict:
    return json.loads((folder / "data" / "metadata").read_text())
