"""The step gives equal results for every split and mesh, and is really sharded."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.batch import Batch
from lm.distributed import rules, sharding
from lm.distributed.rules import average_of
from lm.losses import Loss
from lm.losses.tokens import token_loss
from lm.models import build
from lm.training import guard, optimizer
from lm.training.state import Extras, create_state
from lm.training.step import make_train_step
from tests.lm.small_models import drawn, identical
from tests.lm.training import small

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def alone():
    """State and metrics after one step on one device."""
    _, state, batch = small.lowered((1, 1, 1))
    return jax.device_get(small.compiled((1, 1, 1))(state, batch))


def assert_close(ours, theirs, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), ours, theirs
    )


@pytest.mark.parametrize(
    ("shape", "accumulate"),
    [
        pytest.param((8, 1, 1), 1, marks=pytest.mark.slow),  # (4, 1, 2) splits the batch too
        ((1, 8, 1), 2),
        ((4, 1, 2), 4),
        ((2, 2, 2), 1),
    ],
)
def test_a_step_on_eight_devices_or_in_micro_batches_differs_from_one_device(
    alone, shape, accumulate
):
    _, state, batch = small.lowered(shape, accumulate=accumulate)
    state, metrics = jax.device_get(small.compiled(shape, accumulate)(state, batch))
    assert_close(metrics, alone[1])
    assert_close(state.params, alone[0].params)
    assert_close(state.opt_state, alone[0].opt_state)


def test_micro_batches_of_unequal_weight_are_averaged_as_if_equal():
    model, adamw, schedule = small.parts(small.MODEL.replace(n_layers=1), clip=0.0)
    tokens = np.random.default_rng(0).integers(0, 64, (4, 16))
    segments = np.ones((4, 16), np.int32)
    segments[1, 3:] = segments[3, 5:] = 0  # micro-batch 1 of 2 has rows 1 and 3
    batch = Batch.of(tokens, segments)
    state = create_state(model, adamw, small.mesh_of(1, 1, 1), 0, params=drawn(model))
    step = lambda k: jax.jit(make_train_step(model, token_loss, adamw, schedule, accumulate=k))(
        state, batch
    )[1]
    one, two = step(1), step(2)
    assert float(one["weight"]) == batch.weights.sum()
    assert_close(two, one)


def test_sharding_constraints_are_not_in_the_program():
    lowered, _, _ = small.lowered((2, 2, 2))
    constraints = [
        line
        for line in lowered.as_text().splitlines()
        if "sharding_constraint" in line or "@Sharding" in line
    ]
    assert sum('"data", "fsdp"' in line for line in constraints) >= 6, (
        "activations are not split over the batch axes"
    )
    assert sum('"tensor"' in line for line in constraints) >= 4, (
        "heads and mlp are not split over the tensor axis"
    )


def test_state_is_not_sharded_from_birth():
    model, adamw, _ = small.parts()
    state = create_state(model, adamw, small.mesh_of(2, 2, 2), 0)
    up = state.params["layers"]["mlp"]["up"]
    assert up.sharding.shard_shape(up.shape) == (2, 16, 32)
    moment = state.opt_state[1].mu["layers"]["mlp"]["up"]
    assert moment.sharding == up.sharding


def test_xla_replicates_an_array_against_our_will():
    run = subprocess.run(
        [sys.executable, "-m", "tests.lm.training.small"],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    control, ours = run.stderr.split(small.RESHARDED)
    warning = "Involuntary full rematerialization"
    assert warning in control, "XLA's warning is not seen even where it must come"
    assert warning not in ours, ours


def test_a_step_compiles_again_after_the_first():
    _, state, batch = small.lowered((2, 2, 2))
    compiled = small.compiled((2, 2, 2))
    count = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: count.append(name) if "backend_compile" in name else None
    )
    with sharding.activate(small.mesh_of(2, 2, 2)):
        for _ in range(3):
            state, _ = compiled(state, batch)
    jax.monitoring.clear_event_listeners()
    assert not count
    assert int(state.step) == 3


def plain_step(model, adamw):
    """The step without extras: gradient of the mean, clipping, AdamW."""

    def step(params, opt_state, batch):
        def mean(p):
            loss = token_loss(model, p, batch, None)
            return loss.first.sum, loss

        (_, loss), g = jax.value_and_grad(mean, has_aux=True)(params)
        updates, opt_state = adamw.update(
            jax.tree.map(lambda x: x * (1 / loss.first.weight), g), opt_state, params
        )
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(step)


def after(step, state, batches):
    """(state, metrics of each step)."""
    metrics = []
    for batch in batches:
        state, m = step(state, batch)
        metrics.append({name: float(x) for name, x in m.items()})
    return jax.device_get(state), metrics


CONFIG = small.MODEL.replace(n_layers=1)


def rows(n, seed=0):
    return [Batch.of(np.random.default_rng(seed + i).integers(0, 64, (2, 8))) for i in range(n)]


def test_a_step_with_everything_off_is_another_program_or_gives_other_bits():
    model, adamw, schedule = small.parts(CONFIG)
    state = create_state(model, adamw, small.mesh_of(1, 1, 1), 0, params=drawn(model))
    params, opt_state = state.params, state.opt_state
    step = plain_step(model, adamw)
    for batch in rows(3):
        params, opt_state = step(params, opt_state, batch)
    off = make_train_step(
        model, token_loss, adamw, schedule, rates=rules.RATES, ema=0.0, skip_above=0.0
    )
    found, _ = after(jax.jit(off), state, rows(3))
    assert identical(found.params, params) and identical(found.opt_state, opt_state)
    text = lambda f: str(jax.make_jaxpr(f)(state, rows(1)[0]))
    assert text(off) == text(make_train_step(model, token_loss, adamw, schedule))
    assert found.ema is None and found.guard is None


SPIKES = (1.0, 1e6, float("nan"), float("inf"))


def spiked(model, params, batch, rng=None):
    """Next-token loss times the spike that the batch's first token type selects."""
    found = token_loss(model, params, batch, rng)
    spike = jnp.asarray(SPIKES)[batch.types[0, 0]]
    return Loss.of(found.first.sum * spike, found.first.weight, **found.metrics)


def test_a_spike_changes_anything_or_is_not_counted():
    model, adamw, schedule = small.parts(CONFIG)
    mark = lambda batch, kind: batch.replace(types=np.full((2, 8), kind, np.int32))
    batches = [mark(batch, 0) for batch in rows(guard.SEEN + 2)]
    extras = Extras(ema=True, guard=True)
    state = create_state(
        model, adamw, small.mesh_of(1, 1, 1), 0, params=drawn(model), extras=extras
    )
    step = jax.jit(make_train_step(model, spiked, adamw, schedule, ema=0.9, skip_above=10.0))
    before, _ = after(step, state, batches[:-1])
    undisturbed, _ = after(step, before, batches[-1:])
    for kind, factor in enumerate(SPIKES[1:], 1):
        during, (metrics,) = after(step, before, [mark(batches[0], kind)])
        assert metrics["skipped"] == 1.0 and metrics["nonfinite_in_a_row"] == float(
            not np.isfinite(factor)
        ), factor
        for name in ("params", "opt_state", "ema"):
            assert identical(getattr(during, name), getattr(before, name)), (factor, name)
        later, (metrics,) = after(step, during, batches[-1:])
        assert metrics["skipped"] == 1.0 and metrics["nonfinite_in_a_row"] == 0.0
        assert identical(later.params, undisturbed.params), (
            "the update after a skipped one is not that of a run without it"
        )


def test_a_lasting_change_of_scale_is_skipped_for_ever():
    judged = jax.jit(lambda g, norm: guard.judge(g, jnp.float32(0), norm, 5.0))
    g, taken = guard.start(), []
    for norm in [1.0] * guard.WINDOW + [50.0] * guard.WINDOW:
        g, take = judged(g, jnp.float32(norm))
        taken.append(bool(take))
    assert taken[: guard.WINDOW] == [True] * guard.WINDOW
    assert (
        taken[guard.WINDOW :].index(True) == guard.WINDOW // 2
        and int(g.skipped) == guard.WINDOW // 2
    )
    assert all(taken[-guard.WINDOW // 2 :])


def test_the_average_is_not_the_recursion_of_the_parameters():
    model, adamw, schedule = small.parts(CONFIG)
    state = create_state(model, adamw, small.mesh_of(1, 2, 1), 0, extras=Extras(ema=True))
    up = lambda tree: tree["layers"]["mlp"]["up"]
    assert up(state.ema).sharding == up(state.params).sharding
    mesh, extras = small.mesh_of(1, 1, 1), Extras(ema=True)
    state = create_state(model, adamw, mesh, 0, params=drawn(model), extras=extras)
    step = jax.jit(make_train_step(model, token_loss, adamw, schedule, ema=0.15), donate_argnums=0)
    wanted = np.asarray(up(state.ema)).copy()
    for n, batch in enumerate(rows(4)):
        state, _ = step(state, batch)
        d = min(0.15, (1 + n) / (10 + n))
        wanted = d * wanted + (1 - d) * np.asarray(up(state.params))
    np.testing.assert_allclose(up(state.ema), wanted, rtol=1e-5, atol=1e-7)
    assert (
        identical(average_of(state.params, state.ema), state.ema)
        and average_of(state.params, None) is state.params
    )


# Lion is as elementwise as AdamW, whose state the test of eight devices above compares.
@pytest.mark.parametrize(
    "name", ["muon", "adafactor", pytest.param("lion", marks=pytest.mark.slow)]
)
def test_an_optimizer_gives_other_numbers_on_eight_devices(name):
    def run(shape):
        model, mesh = build(CONFIG.replace(d_model=128, d_ff=128)), small.mesh_of(*shape)
        updates = optimizer.build(
            name, lambda _: 1e-2, rules.by_path(model.logical_axes()), clip=0.0
        )
        state = create_state(model, updates, mesh, 0, params=drawn(model))
        shardings = jax.tree.map(lambda x: x.sharding, state)
        step = make_train_step(
            model, token_loss, updates, lambda _: 1e-2, shardings=shardings.params
        )
        with sharding.activate(mesh):
            step = jax.jit(step, out_shardings=(shardings, None))
            for batch in rows(2, seed=5):
                batch = jax.tree.map(lambda x: np.tile(x, (4, 1)), batch)
                state, _ = step(state, batch)
        return jax.device_get(state.params)

    one, eight = run((1, 1, 1)), run((2, 2, 2))
    # The sign of a tiny gradient is rounding noise, and the first steps of Lion and AdamW are
    # signs.
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        assert np.mean(np.abs(a - b) > 1e-4) < 0.01
