"""Pattern tables for weight decay, learning rates and freezing cover every parameter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import families
from lm.batch import Batch
from lm.distributed import rules, sharding
from lm.losses.tokens import token_loss
from lm.models import build
from lm.models.config import ConfigError
from lm.training import optimizer
from lm.training.state import Extras, abstract_state, create_state
from lm.training.step import make_train_step
from tests.lm.training import small

FREEZE = ((r"embeddings|mlp/", 0.0), (r"query", 3.0), (r".", 1.0))


@functools.cache
def names(family):
    return rules.by_path(build(families.preset(family, "tiny")).logical_axes())


@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "bert", "t5", "bart", "mamba", "mamba2", "bamba", "albert"]
)
def test_norms_biases_or_a_state_space_s_own_vectors_decay_or_matrices_do_not(family):
    shares = {name: rules.of(rules.DECAY, name, "optimizer.decay") for name in names(family)}
    undecayed = ("/scale", "norm_scale", "bias", "a_log", "skip")
    assert {name for name, share in shares.items() if share == 0.0} == {
        name for name in shares if name.endswith(undecayed)
    }
    assert set(shares.values()) == {0.0, 1.0}


def test_a_parameter_without_a_pattern_or_a_pattern_without_a_parameter_is_accepted():
    with pytest.raises(ConfigError, match=r"optimizer.decay has no pattern for parameter a/kernel"):
        rules.values({"a": {"kernel": 0}}, ((r"bias$", 0.0),), "optimizer.decay")
    with pytest.raises(
        ConfigError,
        match=r"optimizer.rates: 'layrs' is in no parameter's path; there are .*layers/mlp/up",
    ):
        rules.check_used(names("gpt2"), ((r"layrs", 0.0), (r".", 1.0)), "optimizer.rates")
    with pytest.raises(
        ConfigError, match=r"'layers/mpl' of 'embeddings|layers/mpl' is in no parameter's path"
    ):
        rules.check_used(
            names("gpt2"), ((r"embeddings|layers/mpl", 0.0), (r".", 1.0)), "optimizer.rates"
        )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (((r"(", 0.0),), "not a regular expression"),
        ((("a", -1.0),), "0 or more"),
        ((("a", float("nan")),), "0 or more"),
        ((("a", "b"),), "expected pairs"),
        (("norm", 0.0), "expected pairs"),
    ],
)
def test_a_malformed_table_is_accepted(table, said):
    with pytest.raises(ConfigError, match=f"optimizer.rates.*{said}"):
        rules.check(table, "optimizer.rates")


def test_splitting_and_joining_loses_a_parameter():
    params = {"a": {"b": 1, "c": 2}, "d": 3}
    trained, frozen = rules.split(params, ((r"c|d", 0.0), (r".", 1.0)))
    assert (trained, frozen) == ({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3})
    assert rules.join(trained, frozen) == params
    assert rules.split(params) == (params, {})


@pytest.fixture(scope="module")
def frozen_run():
    """(state before, state after two steps, compiled step's gradients) with FREEZE, sharded."""
    mesh = small.mesh_of(1, 2, 1)
    model, _, schedule = small.parts()
    adamw = optimizer.adamw(schedule, rates=FREEZE)
    extras = Extras(ema=True, rates=FREEZE)
    state = create_state(model, adamw, mesh, 0, extras=extras)
    shardings = jax.tree.map(
        lambda x: x.sharding, abstract_state(model, adamw, mesh, extras=extras)
    )
    step = make_train_step(
        model, token_loss, adamw, schedule, shardings=shardings.params, rates=FREEZE, ema=0.9
    )
    batch = Batch.of(np.random.default_rng(0).integers(0, 64, (4, 16)))
    before = jax.device_get(state)
    with sharding.activate(mesh):
        step = jax.jit(step, out_shardings=(shardings, None))
        for _ in range(2):
            state, _ = step(state, batch)
    return before, jax.device_get(state)


def test_a_frozen_parameter_moves_or_has_moments_or_a_trained_one_does_not(frozen_run):
    before, after = frozen_run
    a, b = rules.by_path(before.params), rules.by_path(after.params)
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert (x.tobytes() == b[name].tobytes()) == ("embeddings" in name or "mlp/" in name), name
    trained = set(rules.by_path(rules.split(before.params, FREEZE)[0]))
    assert set(rules.by_path(after.opt_state[1].mu)) == set(rules.by_path(after.ema)) == trained
    assert not any("mlp/" in name for name in trained) and "layers/attention/query" in trained


def test_a_rate_is_not_a_multiple_of_the_learning_rate():
    params = {"query": jnp.ones(3), "key": jnp.ones(3)}
    adamw = optimizer.adamw(lambda _: 0.1, rates=FREEZE)
    updates, _ = adamw.update(
        {"query": jnp.ones(3), "key": jnp.ones(3)}, adamw.init(params), params
    )
    np.testing.assert_allclose(updates["query"], 3 * updates["key"], rtol=1e-6)
