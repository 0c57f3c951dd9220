"""Training runs of a few seconds."""

import jax

from configs import tiny
from lm.training import checkpoints


def text(folder, name="x.txt"):
    """Write a text file. Returns its path."""
    path = folder / name
    path.write_text(
        "".join(
            f"The {n} of {n * 7 % 13} lies {n * n % 17} miles from the {n % 5}. " for n in range(60)
        )
    )
    return str(path)


def config(folder, **changes):
    """A smaller configs/tiny.py; `changes` are dotted fields."""
    c = tiny.get_config()
    c.update_from_flattened_dict(
        {
            "steps": 12,
            "batch_size": 8,
            "length": 16,
            "data.files": text(folder),
            "data.cache": str(folder / "cache"),
            "model.d_model": 16,
            "model.n_layers": 1,
            "model.d_ff": 32,
            "model.n_heads": 2,
            "model.n_kv_heads": 2,
            "optimizer.warmup": 2,
            "log.every": 1,
            "log.tensorboard": False,
            "checkpoint.every": 4,
            "samples.prompts": (),
            **changes,
        }
    )
    return c


def saved_and_restored(run, state):
    """The state from a checkpoint of it, on the devices of the run. The state has step 1."""
    writer = checkpoints.Checkpoints(run.workdir, keep=1)
    writer.save(1, state, {})
    writer.close()
    restored = checkpoints.restore(run.workdir, run.abstract)
    assert restored is not None
    jax.block_until_ready(restored.state)
    return restored.state
