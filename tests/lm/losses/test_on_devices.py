"""On a mesh, losses equal those of one device, and their loops do not communicate over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.distributed import sharding
from lm.losses import cross_entropy, divergence
from lm.losses.log_probs import log_probs
from lm.models.layers import constrain
from tests.lm import collectives
from tests.lm.training import small

B, T, D, V, K, CHUNK = 8, 24, 6, 16, 3, 4
RNG = np.random.default_rng(0)
HEAD, HIDDEN = RNG.normal(size=(V, D)), RNG.normal(size=(B, T, D))
TARGETS = jnp.asarray(RNG.integers(0, V, (B, T)))
UP = jnp.float32(RNG.normal(size=(2, B, T)))
WEIGHTS = jnp.float32(RNG.random((B, T)) * (RNG.random((B, T)) < 0.3))
THEIRS = jnp.float32(RNG.normal(size=(B, T, D)))


def logits(head, hidden):
    table = constrain(head["table"], "vocab embed")
    return jnp.einsum("...d,vd->...v", hidden, table) + head["bias"]


def of_cross_entropy(sparse=False):
    def loss(head, hidden, base):
        extra = cross_entropy.Extra(0.1, 1e-2)
        found = cross_entropy.summed(logits, head, hidden, TARGETS, WEIGHTS, CHUNK, extra, sparse)
        return found[0]

    return loss


def of_tokens(head, hidden, base):
    return jnp.sum(UP[0] * cross_entropy.per_token(logits, head, hidden, TARGETS, CHUNK))


def of_log_probs(head, hidden, base):
    found, entropy = log_probs(logits, head, hidden, TARGETS, CHUNK)
    return jnp.sum(UP[0] * found + UP[1] * entropy)


def of_divergence(top_k=0):
    def loss(head, hidden, base):
        return divergence.summed(
            logits, head, hidden, logits, base, THEIRS, WEIGHTS, CHUNK, "forward", 1.5, top_k
        )

    return loss


def of_stored(head, hidden, base):
    teacher = divergence.top(logits(base, THEIRS), K)
    return divergence.summed_top_k(logits, head, hidden, *teacher, WEIGHTS, CHUNK)


LOSSES = {
    "summed": of_cross_entropy(),
    "sparse": of_cross_entropy(sparse=True),
    "per token": of_tokens,
    "log-probabilities": of_log_probs,
    "divergence": of_divergence(),
    "top k": of_divergence(K),
    "stored": of_stored,
}
QUICK = [
    ("summed", (2, 2, 2)),
    ("sparse", (2, 2, 2)),
    ("per token", (1, 8, 1)),
    ("log-probabilities", (8, 1, 1)),
    ("divergence", (2, 2, 2)),
]


def arguments(table=None, rows=None):
    """Head, hidden states and another head, with these shardings."""
    put = lambda x, to: jnp.float32(x) if to is None else jax.device_put(jnp.float32(x), to)
    head = {"table": put(HEAD, table), "bias": jnp.linspace(-1, 1, V)}
    return head, put(HIDDEN, rows), {"table": put(HEAD[::-1], table), "bias": jnp.zeros(V)}


def on_mesh(loss, mesh):
    """Values and gradients on the mesh, and the compiled program of these."""
    table = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    if mesh.shape["fsdp"] == 8:  # more than the width
        table = NamedSharding(mesh, PartitionSpec("fsdp"))
    given = arguments(table, rows)
    with sharding.activate(mesh):
        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given).compile()
    return jax.device_get(program(*given)), collectives.of(program.as_text())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=() if (name, shape) in QUICK else pytest.mark.slow)
        for name in LOSSES
        for shape in ((8, 1, 1), (1, 8, 1), (2, 2, 2))
    ],
)
def test_the_loop_of_a_loss_communicates_over_the_batch(name, shape):
    loss, mesh = LOSSES[name], small.mesh_of(*shape)
    one = jax.device_get(jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments()))
    every, found = on_mesh(loss, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), every, one)
    inside = [each for each in found if each.loops]
    assert not [each for each in inside if collectives.axes(each, mesh) & {"data", "fsdp"}]
    assert bool(inside) == (shape[2] > 1)  # the sums over a split vocabulary
    of_table = [
        each
        for each in found
        if each.kind in collectives.REDUCTIONS and each.shape == (V // shape[2], D)
    ]
    assert len(of_table) == 1


def test_a_loss_outside_jit_does_not_run_on_a_mesh():
    one = of_log_probs(*arguments())
    with sharding.activate(small.mesh_of(2, 2, 2)):
        np.testing.assert_allclose(of_log_probs(*arguments()), one, rtol=2e-5)


def test_rows_that_the_devices_do_not_divide_are_refused():
    head, hidden, _ = arguments()
    of_rows = lambda hidden: jnp.sum(
        cross_entropy.per_token(logits, head, hidden, TARGETS[: len(hidden)], CHUNK)
    )
    with sharding.activate(small.mesh_of(8, 1, 1)):
        found = jax.jit(of_rows)(hidden[:3])
    np.testing.assert_allclose(found, of_rows(hidden[:3]), rtol=2e-5)
