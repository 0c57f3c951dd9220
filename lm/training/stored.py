"""Outputs of frozen models on the rows of a run, computed once before the first step.

Such as the log-probabilities of a reference. They are cached under a hash of the rows, the model's
config and its weights. The run folder keeps the hashes of the weights, so that a run that resumes
reads the cache and no model.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lm.data import batches
from lm.data.packed import Packed, digest
from lm.distributed import sharding
from lm.distributed.rules import by_path
from lm.models.config import ConfigError
from lm.phases import phase
from lm.tasks.models import Beside
from lm.training.auxiliary import Made
from lm.weights.runs.model_files import model_folder, read_object
from lm.weights.runs.paths import Folder, write_atomically
from lm.weights.runs.steps import CheckpointError

FILE = "stored.json"  # of the folder of a run's model: name -> hash of the weights


@dataclasses.dataclass(frozen=True)
class Stored:
    """Frozen models whose outputs are stored.

    given: weights that were loaded. hashes: of the weights, by name; filled as they are needed.
    kept: of the run that resumes, whose weights are not read.
    """

    models: Mapping[str, Made] = dataclasses.field(default_factory=dict)
    given: Mapping[str, dict] = dataclasses.field(default_factory=dict)
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: bool = False

    def save(self, workdir: Folder) -> None:
        if self.hashes:
            model_folder(workdir).mkdir(parents=True, exist_ok=True)
            write_atomically(model_folder(workdir) / FILE, json.dumps(self.hashes))


def of_run(models: Mapping[str, Made], given: Mapping[str, dict], workdir: Folder, resuming: bool):
    """(models for the state, their weights, `Stored`)."""
    stored = {name: one for name, one in models.items() if one.stored}
    own = {name: x for name, x in given.items() if name in stored}
    file = model_folder(workdir) / FILE
    hashes = read_object(file) if stored and resuming and file.exists() else {}
    rest = {name: one for name, one in models.items() if name not in stored}
    others = {name: x for name, x in given.items() if name not in stored}
    return rest, others, Stored(stored, own, hashes, resuming)


def attached(run: Any, config, task: Any, rows: Packed) -> Packed:
    """The rows with the fields that the task computes from stored models (`Task.stored`).

    run: lm.training.setup.Run; a Reader of data does without these fields.
    """
    frozen = getattr(run, "stored", None)
    if frozen is None or not frozen.models:
        return rows
    if jax.process_count() > 1:
        raise ConfigError(
            f"{jax.process_count()} processes run, and outputs of frozen models are stored by one: "
            "set task.cache_reference=False"
        )
    weights = lambda name: frozen.given.get(name) or initial()
    initial = functools.cache(lambda: run.params or run.weights(run.fresh_state(config.seed)))
    key = [digest(rows)]
    for name, one in frozen.models.items():
        if name not in frozen.hashes:
            frozen.hashes[name] = _hash(weights(name))
        fields = dataclasses.asdict(one.model.config)
        key += [name, frozen.hashes[name], json.dumps(fields, sort_keys=True)]
    named = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    folder = run.cache(config) / f"stored-{named}"
    if not folder.exists():
        if frozen.kept:
            raise CheckpointError(
                f"{folder} with outputs of {', '.join(frozen.models)} is not there, and a run "
                "that resumes does not read the model again: put data.cache back, evaluate with "
                "files of the run, or give another --workdir"
            )
        names = ", ".join(frozen.models)
        with phase(f"computing the outputs of {names} on {len(rows):,} rows"):
            _fill(folder, run, config, task, rows, weights)
    found = {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
    return dataclasses.replace(rows, extra={**rows.extra, **found})


def _fill(
    folder: pathlib.Path,
    run: Any,
    config,
    task: Any,
    rows: Packed,
    weights: Callable[[str], dict],
) -> None:
    size = config.batch_size // config.accumulate
    every = {
        name: sharding.placed(run.mesh, one.model, weights(name), run.parameters)
        for name, one in run.stored.models.items()
    }
    with sharding.activate(run.mesh, run.activations):

        @jax.jit
        def compute(params: dict, batch) -> dict[str, jax.Array]:
            models = {
                name: Beside(one.model, params[name]) for name, one in run.stored.models.items()
            }
            return task.stored(models, batch)

        parts: dict[str, list] = {}
        for numbers, batch in batches.in_order(rows, size, run.rows, config=run.model.config):
            found = jax.device_get(compute(every, batch))
            for name, x in found.items():
                parts.setdefault(name, []).append(x[: int((numbers >= 0).sum())])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        made = pathlib.Path(unfinished) / "made"
        made.mkdir()
        for name, values in parts.items():
            np.save(made / f"{name}.npy", np.concatenate(values), allow_pickle=False)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.exists():  # another run made the same
                raise


def _hash(weights: dict) -> str:
    total = hashlib.sha256()
    for path, x in sorted(by_path(weights).items()):
        array = np.ascontiguousarray(np.asarray(jax.device_get(x)))
        total.update(f"{path} {array.dtype} {array.shape} ".encode())
        total.update(array.view(np.uint8).data)
    return total.hexdigest()
