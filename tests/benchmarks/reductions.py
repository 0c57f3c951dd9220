"""Bytes that a training step communicates: python -m tests.benchmarks.reductions

For a small GPT-2 (4 layers of width 128, 8,192 tokens, tied, float32; 64 rows of 128 tokens), it
sums the sizes of the results of all collectives of the step, compiled for 8 CPU devices, on one
device and with loops counted as often as they run. Beside them stands the temporary memory of the
step on one device, as XLA reports it.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax

from lm.batch import Batch
from lm.distributed import sharding
from lm.distributed.mesh import make_mesh
from lm.families import preset
from lm.losses.tokens import token_loss
from lm.models import build
from lm.training import optimizer
from lm.training.setup import abstract_batch
from lm.training.state import abstract_state
from lm.training.step import REDUCE, make_train_step
from tests.lm import collectives

ROWS, LENGTH = 64, 128
MODEL = preset("gpt2", "tiny").replace(
    vocab_size=8192, d_model=128, n_layers=4, head_dim=32, d_ff=512, max_length=LENGTH
)


def found(shape: tuple[int, int, int], accumulate: int, reduce: str) -> tuple[float, float]:
    """MB that a step on a mesh of data, fsdp and tensor communicates, and its temporary MB."""
    mesh, model = make_mesh(*shape), build(MODEL)
    schedule = lambda step: 1e-3
    adamw = optimizer.adamw(schedule)
    state = abstract_state(model, adamw, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    batch: Batch = abstract_batch(sharding.batch_sharding(mesh, (ROWS, LENGTH)), ROWS, (LENGTH, 0))
    step = make_train_step(
        model,
        token_loss,
        adamw,
        schedule,
        accumulate=accumulate,
        shardings=shardings.params,
        reduce=reduce,
    )
    with sharding.activate(mesh):
        step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        compiled = step.lower(state, batch).compile()
    sent = sum(each.bytes for each in collectives.of(compiled.as_text()))
    return sent / 1e6, compiled.memory_analysis().temp_size_in_bytes / 1e6


def main() -> None:
    print("mesh (data, fsdp, tensor) | micro-batches | sharding.reduce | MB sent | temporary MB")
    for shape in ((8, 1, 1), (4, 2, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2)):
        for accumulate, reduce in ((1, REDUCE[0]), *((4, reduce) for reduce in REDUCE)):
            sent, memory = found(shape, accumulate, reduce)
            print(f"{shape} | {accumulate} | {reduce} | {sent:.1f} | {memory:.1f}", flush=True)


if __name__ == "__main__":
    main()
