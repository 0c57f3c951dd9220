"""Weights of a run folder: the params of its newest verified checkpoint, and its adapters."""

import logging
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from lm import tasks
from lm.adaptation import plan
from lm.adaptation.lora import Lora
from lm.data.encode import plain_text
from lm.distributed.rules import average_of, by_path
from lm.models import build
from lm.tasks.text import TextTask
from lm.weights.runs import steps as step_folders
from lm.weights.runs.model_files import (
    MODELS,
    kept_auxiliary,
    load_model_config,
    model_folder,
    read_object,
)
from lm.weights.runs.paths import Folder, local_copy, resolve
from lm.weights.runs.steps import CheckpointError, folder_of, steps

log = logging.getLogger(__name__)


def load_params(
    workdir: str | Folder, step: int | None = None, shardings=None
) -> tuple[Any, dict, Any]:
    """(model, params, tokenizer) from a run's newest checkpoint, or the one of `step`.

    shardings: tree of shardings like params; default: the first local device. params: plain nested
    dicts. Raises CheckpointError.
    """
    from lm.weights.tokenizer import load_tokenizer

    model, lora = build(load_model_config(workdir)), _lora(workdir)
    shapes = model.shapes()
    if shardings is None:
        shardings = jax.tree.map(
            lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), shapes
        )
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    params = _first_good(workdir, step, lambda folder: _read_weights(folder, abstract, model, lora))
    with local_copy(model_folder(workdir) / "tokenizer") as files:
        try:
            return (
                model,
                params,
                _framed(load_tokenizer(str(files)), workdir),
            )
        except Exception as e:  # any error of the tokenizer's library
            raise CheckpointError(
                f"{files} cannot be read ({type(e).__name__}: "
                f"{(str(e).splitlines() or [''])[0][:200]})"
            ) from e


def load_beside(workdir: str | Folder, name: str) -> tuple[Any, dict, Any]:
    """(model, params, tokenizer) of a model that was trained beside the run's.

    Raises CheckpointError when there is none of that name, and for a frozen one.
    """
    from lm.weights.tokenizer import load_tokenizer

    beside = kept_auxiliary(workdir)
    if name not in beside:
        there = f"; it has {', '.join(beside)}" if beside else ""
        raise CheckpointError(f"{workdir} has no model {name!r} beside its own{there}")
    kept = beside[name]
    if not kept.trained:
        raise CheckpointError(
            f"the model {name!r} of {workdir} is frozen: it still is {kept.model or kept.start}"
        )
    model, place = (
        build(kept.config),
        jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
    )
    own = flax.traverse_util.unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
            for path, x in by_path(model.shapes()).items()
            if path not in kept.tied
        },
        sep="/",
    )
    wanted = {MODELS: {name: own}}
    read = _first_good(workdir, None, lambda folder: _read_averaged(folder, wanted))
    params, (_, main, tokenizer) = by_path(read[MODELS][name]), load_params(workdir)
    params |= {path: by_path(main)[of] for path, of in kept.tied.items()}
    if kept.own_rows:
        tokenizer = load_tokenizer(kept.model)
    return model, flax.traverse_util.unflatten_dict(params, sep="/"), tokenizer


def load_adapters(workdir: str | Folder) -> tuple[Any, dict, Lora, str]:
    """(model, adapters, their description, path of the base in the config) of the newest
    checkpoint. Raises CheckpointError.
    """
    model, lora = build(load_model_config(workdir)), _lora(workdir)
    if lora is None:
        raise CheckpointError(f"{workdir} is no run with adapters: adaptation.lora.rank is 0 there")
    shapes = _adapter_shapes(
        model,
        lora,
        model.shapes(),
        jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
    )
    adapters = _first_good(workdir, None, lambda folder: _read_averaged(folder, shapes))
    return model, adapters, lora, read_object(resolve(workdir) / "config.json")["init_from"]


def _first_good(workdir: str | Folder, step: int | None, read: Any) -> Any:
    """Result of `read` for the newest verified checkpoint, or for that of `step`.

    Raises CheckpointError if there is none.
    """
    available, identity = steps(workdir), step_folders.run_id(workdir)
    if not available:
        raise CheckpointError(
            f"{workdir} has no complete checkpoint yet (looked in {folder_of(workdir)}); train "
            "it first"
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


def read_arrays(folder: Folder, abstract: dict, partial: bool = False) -> dict:
    """Arrays of a step folder, sharded as `abstract`. partial: it may hold others too."""
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(folder / "state"), args=args)


def _section(workdir: str | Folder, name: str) -> dict:
    """Section of the run's config; {} without a config."""
    path = resolve(workdir) / "config.json"
    return (read_object(path).get(name) or {}) if path.exists() else {}


def _framed(tokenizer, workdir: str | Folder):
    """Tokenizer of a run on text. Before format 2 not all were saved with their frame."""
    name = _section(workdir, "objective").get("name", "")
    kind = tasks.TASKS.get(name)
    if kind is None or not issubclass(kind, TextTask):
        return tokenizer
    return plain_text.as_documents(tokenizer, kind.whole)


def _lora(workdir: str | Folder) -> Lora | None:
    """Description of the adapters that a run trains, from its config, or None."""
    section = _section(workdir, "adaptation")
    return plan.lora_of(section) if section else None


def _read_weights(folder: Folder, abstract: dict, model, lora: Lora | None) -> dict:
    """Read the model's params from a checkpoint, with adapters merged."""
    if lora is None:
        return _read_averaged(folder, abstract)
    adaptation = plan.Plan(model.logical_axes(), lora)
    placed = jax.tree.leaves(abstract)[0].sharding
    whole = (
        NamedSharding(placed.mesh, PartitionSpec()) if isinstance(placed, NamedSharding) else placed
    )
    adapters = _read_averaged(folder, _adapter_shapes(model, lora, abstract, whole))
    fixed = read_arrays(folder, {"fixed": {"base": abstract}}, partial=True)["fixed"]
    return jax.jit(adaptation.weights, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(
        adapters, fixed
    )


def _adapter_shapes(model, lora: Lora, base: dict, place) -> dict:
    shapes = jax.eval_shape(
        lambda p: plan.Plan(model.logical_axes(), lora).start(p, jax.random.key(0))[0], base
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _read_averaged(folder: Folder, abstract: dict) -> dict:
    """Read the params of a checkpoint: their moving average if it has one."""
    saved, of = step_folders.shapes(folder), by_path(abstract)
    averaged = {
        n: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding)
        for n, x in of.items()
        if f"ema/{n}" in saved
    }
    if not averaged:
        return read_arrays(folder, {"params": abstract}, partial=True)["params"]
    wanted = {"params": abstract, "ema": flax.traverse_util.unflatten_dict(averaged, sep="/")}
    read = read_arrays(folder, wanted, partial=True)
    return average_of(read["params"], read["ema"])
