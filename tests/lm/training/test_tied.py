"""A table with several uses is gathered once a step, and its gradient is reduced once."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from lm.distributed import sharding
from lm.distributed.mesh import make_mesh
from lm.losses import Loss
from lm.losses.log_probs import log_probs
from lm.losses.tokens import head_of, token_loss, token_losses
from lm.models import tied
from lm.training.state import create_state
from lm.training.step import make_train_step
from tests.lm import collectives
from tests.lm.distributed.test_sequence import ROWS, SPLIT, T, made

FSDP, BOTH, TENSOR = (1, 4, 1, 1), (1, 2, 1, 2), (1, 2, 2, 2)  # data, fsdp, tensor, sequence
SLOW = pytest.mark.slow


def of_each_token(model, params, batch, rng):
    """A loss whose backward pass computes the logits again."""
    found = token_losses(model, params, batch)
    return Loss.of(jnp.sum(found * batch.weights), jnp.sum(batch.weights))


def of_log_probs(model, params, batch, rng):
    hidden = model.apply({"params": params}, batch, method="hidden").hidden
    logits, head = head_of(model, params)
    found, entropy = log_probs(logits, head, hidden, batch.targets, 4)
    return Loss.of(jnp.sum((found * entropy) * batch.weights), jnp.sum(batch.weights))


def step(shape, name, loss=token_loss, reduce="step"):
    """(compiled step of gradient descent, state, batch, mesh) of a representative."""
    mesh = make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    model, params, batch = made(name)
    sgd = optax.sgd(1.0)
    state = create_state(model, sgd, mesh, 0, params=params)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    run = make_train_step(
        model, loss, sgd, lambda _: 1.0, shardings=shardings.params, reduce=reduce
    )
    rows = sharding.batch_sharding(mesh, (ROWS, T))
    batch = jax.tree.map(lambda x: jax.device_put(x, rows), batch)
    with sharding.checked(mesh):
        run = jax.jit(run, out_shardings=(shardings, None))
        return run.lower(state, batch).compile(), state, batch, mesh


def reduced(compiled, state, mesh):
    """How often the table or its part is reduced over each mesh axis, and how often gathered."""
    table = state.params["embeddings"]["token"]
    part = np.prod(table.sharding.shard_shape(table.shape))
    sizes = {part, part * mesh.shape["fsdp"]}
    found = [
        one
        for one in collectives.of(compiled.as_text())
        if not one.loops and np.prod(one.shape) in sizes
    ]
    over = lambda kinds: collections.Counter(
        axis for one in found if one.kind in kinds for axis in collectives.axes(one, mesh)
    )
    return over(collectives.REDUCTIONS), over(("all-gather",))


@pytest.mark.parametrize(
    ("name", "shape", "axes", "loss"),
    [
        ("gpt2", FSDP, ("fsdp",), of_each_token),
        ("t5", BOTH, ("fsdp", "sequence"), token_loss),
        pytest.param("gpt2", FSDP, ("fsdp",), of_log_probs, marks=SLOW),
        pytest.param("bert", FSDP, ("fsdp",), token_loss, marks=SLOW),
        pytest.param("llama", SPLIT, ("data", "sequence"), token_loss, marks=SLOW),
        pytest.param("mamba", BOTH, ("fsdp", "sequence"), token_loss, marks=SLOW),
        pytest.param("gpt2", TENSOR, ("fsdp", "sequence"), token_loss, marks=SLOW),
    ],
)
def test_a_table_is_reduced_for_each_use_or_its_gradient_changes(name, shape, axes, loss):
    compiled, state, batch, mesh = step(shape, name, loss)
    reductions, gathers = reduced(compiled, state, mesh)
    assert reductions == collections.Counter(axes)
    assert gathers == collections.Counter({"fsdp"} & {*axes})
    one = step((1, 1, 1, 1), name, loss)
    ours, alone = (jax.device_get(each[0](*each[1:3])) for each in ((compiled, state, batch), one))
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    jax.tree.map(same, (ours[0].params, ours[1]), (alone[0].params, alone[1]))


def test_per_micro_batch_the_gradient_of_a_use_waits_for_others():
    compiled, state, _, mesh = step(FSDP, "gpt2", reduce="micro_batch")
    assert reduced(compiled, state, mesh)[0]["fsdp"] == 2


def test_copies_of_another_split_or_table_are_used():
    tables = [jnp.ones((8, 4)), jnp.ones((8, 4))]
    with tied.copied([(tables[0], PartitionSpec(None, None))], ()):
        assert tied.copies(tables[0]) is None
    mesh = make_mesh(2, 2, 2, 1)
    with sharding.activate(mesh):
        with tied.copied([(tables[0], PartitionSpec(None, None))], ("data", "fsdp")):
            found = tied.copies(tables[0])
            assert found.of_devices.shape == (4, 8, 4)
            assert tied.copies(tables[1]) is None
        assert tied.copies(tables[0]) is None
