"""The step gives the same numbers however it is cut up, and is really sharded."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm.batch import Batch
from lm.objectives import next_token
from lm.training import sharding
from lm.training.state import create_state
from lm.training.step import make_train_step
from tests.lm.training import small

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def alone():
    """State and metrics after one step on one device."""
    _, state, batch = small.lowered((1, 1, 1))
    return jax.device_get(small.compiled((1, 1, 1))(state, batch))


def assert_close(ours, theirs, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), ours, theirs)


@pytest.mark.parametrize(("shape", "accumulate"), [((8, 1, 1), 1), ((1, 8, 1), 2), ((4, 1, 2), 4), ((2, 2, 2), 1)])
def test_a_step_on_eight_devices_or_in_micro_batches_differs_from_one_device(alone, shape, accumulate):
    _, state, batch = small.lowered(shape, accumulate=accumulate)
    state, metrics = jax.device_get(small.compiled(shape, accumulate)(state, batch))
    assert_close(metrics, alone[1])
    assert_close(state.params, alone[0].params)
    assert_close(state.opt_state, alone[0].opt_state)


def test_micro_batches_of_unequal_weight_are_averaged_as_if_equal():
    model, adamw, schedule = small.parts(small.MODEL.replace(n_layers=1), clip=0.0)
    tokens = np.random.default_rng(0).integers(0, 64, (4, 16))
    segments = np.ones((4, 16), np.int32)
    segments[1, 3:] = segments[3, 5:] = 0  # micro-batch 1 of 2 is rows 1 and 3
    batch = Batch.of(tokens, segments)
    mesh = small.mesh_of(1, 1, 1)
    state = create_state(model, adamw, mesh, 0)
    step = lambda k: jax.jit(make_train_step(model, next_token, adamw, schedule, accumulate=k))(state, batch)[1]
    one, two = step(1), step(2)
    assert float(one["weight"]) == batch.weights.sum()
    assert_close(two, one)


def test_sharding_constraints_are_not_in_the_program():
    lowered, _, _ = small.lowered((2, 2, 2))
    constraints = [line for line in lowered.as_text().splitlines() if "sharding_constraint" in line or "@Sharding" in line]
    assert sum('"data", "fsdp"' in line for line in constraints) >= 6, "activations are not split over the batch axes"
    assert sum('"tensor"' in line for line in constraints) >= 4, "heads and mlp are not split over the tensor axis"


def test_state_is_not_sharded_from_birth():
    _, state, _ = small.lowered((2, 2, 2))
    up = state.params["layers"]["mlp"]["up"]
    assert up.sharding.shard_shape(up.shape) == (2, 16, 32)
    moment = state.opt_state[1].mu["layers"]["mlp"]["up"]
    assert moment.sharding == up.sharding


def test_xla_replicates_an_array_against_our_will():
    def warnings(*args):
        env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
        run = subprocess.run([sys.executable, "-m", "tests.lm.training.small", *args], cwd=ROOT, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return [line for line in run.stderr.splitlines() if "Involuntary full rematerialization" in line]

    assert warnings("control"), "XLA's warning is not seen even where it must come"
    assert not warnings()


def test_a_step_compiles_again_after_the_first():
    _, state, batch = small.lowered((2, 2, 2))
    compiled = small.compiled((2, 2, 2))
    count = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: count.append(name) if "backend_compile" in name else None)
    with sharding.activate(small.mesh_of(2, 2, 2)):
        for _ in range(3):
            state, _ = compiled(state, batch)
    jax.monitoring.clear_event_listeners()
    assert not count
    assert int(state.step) == 3
