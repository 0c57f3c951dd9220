"""A model, a mesh and a step that are small enough to compile often."""

import functools
import sys

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lm.data.batches import TrainBatches
from lm.data.packed import synthetic
from lm.distributed import sharding
from lm.distributed.mesh import make_mesh
from lm.losses.tokens import token_loss
from lm.models import build
from lm.models.config import ModelConfig
from lm.training import optimizer, schedules
from lm.training.state import create_state
from lm.training.step import make_train_step
from tests.lm.small_models import drawn

MODEL = ModelConfig(
    family="llama",
    vocab_size=64,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=64,
    max_length=32,
    tie_embeddings=False,
    initializer_range=0.1,
)
ROWS, LENGTH = 16, 16
RESHARDED = "the control is compiled"  # printed between XLA's warnings on both


def mesh_of(data: int, fsdp: int, tensor: int):
    """A mesh over the first devices."""
    return make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])


def parts(config=MODEL, *, clip=1.0):
    """Return (model, optimizer, schedule)."""
    schedule = schedules.schedule("cosine", 1e-3, 2, 10, 0.1)
    return build(config), optimizer.adamw(schedule, clip=clip), schedule


@functools.cache
def lowered(shape, config=MODEL, accumulate=1, reduce="step", initialised=False):
    """(jitted step lowered for a mesh of `shape`, state, first batch); nothing is donated.

    initialised: draw the parameters as a run does, which compiles a program for every mesh.
    """
    mesh = mesh_of(*shape)
    model, adamw, schedule = parts(config)
    state = create_state(model, adamw, mesh, 0, params=None if initialised else drawn(model))
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(
        model,
        token_loss,
        adamw,
        schedule,
        accumulate=accumulate,
        shardings=shardings.params,
        reduce=reduce,
    )
    batch = next(
        TrainBatches(
            synthetic(64, 32, LENGTH),
            ROWS,
            0,
            sharding.batch_sharding(mesh, (ROWS, LENGTH)),
        )
    )
    with sharding.activate(mesh):
        return jax.jit(step, out_shardings=(shardings, None)).lower(state, batch), state, batch


@functools.cache
def compiled(shape, accumulate=1):
    """The compiled step for a mesh of `shape`."""
    return lowered(shape, accumulate=accumulate)[0].compile()


def _resharding():
    """A resharding that XLA can only do by replicating an array (openxla/xla#15207).

    It shows that the test would see XLA's warning.
    """
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, columns = (
        NamedSharding(mesh, spec)
        for spec in (PartitionSpec("y", None, "x"), PartitionSpec(None, ("x", "y"), None))
    )
    add = lambda a, b, c: c + jax.lax.with_sharding_constraint(a + b, columns)
    x = jax.ShapeDtypeStruct((16, 16, 16), "float32")
    jax.jit(add, in_shardings=(rows, rows, columns), out_shardings=columns).lower(x, x, x).compile()


# test_step.py runs this in a separate process to read XLA's standard error.
if __name__ == "__main__":
    _resharding()
    print(RESHARDED, file=sys.stderr, flush=True)
    lowered((2, 2, 2), MODEL.replace(tie_embeddings=True), initialised=True)[0].compile()
    lowered((1, 8, 1), accumulate=2, initialised=True)[0].compile()
