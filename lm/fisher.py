"""Write the Fisher information of a model's weights, for adaptation.ewc (docs/forgetting.md).

python -m lm.fisher --config=FILE.py[:VARIANT] --workdir=DIR [--sampled] [--config.FIELD=VALUE ...]

The config is that of a training run: init_from names the model, data and task define what
should not be forgotten, and steps * batch_size rows are read. Writes DIR/fisher.safetensors.
--sampled: draw targets from the model (true Fisher information) instead of using the data's.
"""

import logging
import sys

from lm.compiled import keep_compiled
from lm.interrupts import entry_point


@entry_point
def main(argv=None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"--help", "-h"} & set(argv):
        print(__doc__.strip())
        return 0
    keep_compiled()
    from lm.data.read.sources import DataError
    from lm.models.config import ConfigError
    from lm.training import command_line
    from lm.training.checkpoints import CheckpointError
    from lm.weights import WeightsError

    logging.getLogger("absl").setLevel(logging.ERROR)
    sampled = "--sampled" in argv
    try:
        config, workdir = command_line.parse([a for a in argv if a != "--sampled"])
        write(config, workdir, sampled)
    except BrokenPipeError:
        raise
    except (ConfigError, DataError, WeightsError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(config, workdir: str, sampled: bool) -> None:
    """Read config.steps batches, and write workdir/fisher.safetensors."""
    import itertools
    import math
    from pathlib import Path
    from typing import Any

    import jax
    import jax.numpy as jnp

    from lm import folders, tasks
    from lm.adaptation import fisher
    from lm.distributed import sharding
    from lm.models.config import LM_HEADS, ConfigError
    from lm.phases import phase
    from lm.training import optimizer, setup

    if not config.init_from:
        raise ConfigError(
            "init_from is not set: it names the model whose Fisher information to take"
        )
    folders.refuse("workdir", workdir, ("a tokenizer",))
    task = tasks.of(config)
    if config.further_tasks:
        raise ConfigError("further_tasks: Fisher information is of one task; leave them out")
    if task.joint:
        raise ConfigError(
            f"task {task.name!r} compares the rows of a batch: no row has a likelihood of its own"
        )
    config.optimizer.update(
        schedule="constant", warmup=0, cooldown=0, final=optimizer.FINAL
    )  # no updates are done, so any number of steps is allowed
    run = setup.prepare(config, Path(workdir))
    if task.likelihood().aux(run.model.config):
        raise ConfigError(
            f"task {task.name!r} trains a model beside the run's: Fisher information is that of "
            "one model's predictions"
        )
    if run.params is None:
        raise ConfigError(
            f"{workdir} holds a training run: give another --workdir for the Fisher information"
        )
    if run.extras.plan is not None:
        raise ConfigError(
            "adaptation is on: Fisher information is that of the base, before any; leave that "
            "section as it is by default"
        )
    if sampled and run.model.config.head not in LM_HEADS:
        raise ConfigError(
            f"--sampled draws tokens, and a model with head={run.model.config.head!r} predicts none"
        )
    batches: Any = setup.train_source(config, run, setup.training_data(config, run))
    params = jax.tree.map(
        lambda p, a: jax.device_put(jnp.asarray(p, a.dtype), a.sharding),
        run.params,
        run.abstract.params,
    )
    at_once = math.prod(run.mesh.shape[axis] for axis in run.activations["batch"])
    with phase("taking the Fisher information"), sharding.activate(run.mesh, run.activations):
        information, rows = fisher.fisher(
            run.model,
            task.likelihood().loss,  # without label smoothing and z-loss
            params,
            itertools.islice(batches, config.steps),
            sampled=sampled,
            seed=config.seed,
            chunk=at_once,
        )
    path = Path(workdir) / "fisher.safetensors"
    fisher.save(path, information, rows, sampled)
    print(
        f"wrote {path}: {'sampled' if sampled else 'empirical'} Fisher information over {rows} rows"
    )


if __name__ == "__main__":
    sys.exit(main())
