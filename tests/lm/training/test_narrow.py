"""bfloat16 parameters train like float32 ones: no moment or update is lost to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.adaptation.lora import Lora
from lm.adaptation.plan import Plan
from lm.batch import Batch
from lm.distributed.rules import by_path
from lm.losses.tokens import token_loss
from lm.models import build
from lm.models.config import ConfigError
from lm.training import narrow, optimizer, settings
from lm.training.state import Extras, abstract_state, create_state
from lm.training.step import make_train_step
from tests.lm.training import small

AXES = {
    "layers/mlp/up": ("layers", "embed", "mlp"),
    "embeddings/token": ("vocab", "table_embed"),
    "norm/scale": ("norm",),
}
START = {
    "layers": {
        "mlp": {"up": np.random.default_rng(0).uniform(0.5, 1, (2, 16, 8)).astype(jnp.bfloat16)}
    },
    "embeddings": {
        "token": np.random.default_rng(1).uniform(0.5, 1, (32, 16)).astype(jnp.bfloat16)
    },
    "norm": {"scale": np.full(16, 0.75, jnp.bfloat16)},
}
UPDATES, RATE, B2 = 400, 1e-6, 0.99
F32 = jnp.dtype("float32")


def trained(name, dtype, rounding="master", rate=RATE):
    """(params, optimizer state) after UPDATES steps with a gradient of ones, without decay."""
    options = {"b2": B2} if name == "adamw" else {}
    o = optimizer.build(
        name, lambda _: rate, AXES, weight_decay=0.0, clip=0.0, rounding=rounding, **options
    )

    def step(carry, _):
        params, state = carry
        updates, state = o.update(
            jax.tree.map(lambda x: jnp.ones(x.shape, F32), params), state, params
        )
        return (optax.apply_updates(params, updates), state), None

    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), START)
    params, state = jax.jit(lambda carry: jax.lax.scan(step, carry, length=UPDATES)[0])(
        (params, o.init(params))
    )
    return by_path(params), state


def floats(tree):
    return {x.dtype for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


@pytest.mark.parametrize("name", optimizer.USES)
def test_bfloat16_parameters_are_those_of_float32_rounded(name):
    (exact, _), (rough, state) = trained(name, "float32"), trained(name, "bfloat16")
    assert floats(state) == {F32}
    for path, x in exact.items():
        master = by_path(state["master"])[path]
        assert np.all(np.asarray(master) != by_path(START)[path].astype(np.float32)), (
            f"{path}: some of it has not moved"
        )
        np.testing.assert_allclose(master, x, rtol=3e-7)
        np.testing.assert_array_equal(rough[path], master.astype(jnp.bfloat16))
    if name == "adamw":
        assert floats(state["inner"][1].nu) == {F32}
        np.testing.assert_allclose(
            state["inner"][1].nu["norm"]["scale"], 1 - B2**UPDATES, rtol=1e-4
        )


def test_stochastic_rounding_moves_the_mean_as_far_without_a_copy():
    params, state = trained("adamw", "bfloat16", "stochastic", rate=1e-5)
    assert set(state) == {"inner", "count"} and floats(state) == {F32}
    moved = np.concatenate(
        [
            (x.astype(np.float32) - by_path(START)[name].astype(np.float32)).ravel()
            for name, x in params.items()
        ]
    )
    spacing = 2.0**-8  # of bfloat16 in [0.5, 1), equal to the sum of all updates
    np.testing.assert_allclose(
        moved.mean(), -UPDATES * 1e-5, atol=4 * spacing / np.sqrt(moved.size)
    )
    assert {x.dtype for x in params.values()} == {jnp.dtype("bfloat16")}


def test_stochastic_rounding_keeps_what_is_exact_or_not_finite():
    x = jnp.asarray([0.0, -0.0, 1.0, -3.140625, np.inf, -np.inf, np.nan, 3e38], F32)
    rounded = narrow.rounded(x, jax.random.key(0))
    np.testing.assert_array_equal(rounded[:7], x[:7])
    assert rounded.astype(jnp.bfloat16).astype(F32)[7] == rounded[7]


def test_moments_and_copies_are_sharded_as_their_parameters():
    model = build(small.MODEL.replace(param_dtype="bfloat16"))
    o = optimizer.adamw(lambda _: RATE)
    state = abstract_state(model, o, small.mesh_of(1, 4, 2))
    of = lambda tree: {name: x.sharding for name, x in by_path(tree).items()}
    assert of(state.opt_state["master"]) == of(state.params)
    assert of(state.opt_state["inner"][1].nu) == of(state.params)
    assert (
        narrow.described(state, "bfloat16")
        == "bfloat16 parameters, copies of float32 ones; float32 moments; computed in bfloat16"
    )


def test_weights_that_are_bfloat16_on_disk_train_in_float32():
    model, o = build(small.MODEL), optimizer.adamw(lambda _: RATE)
    shapes = jax.eval_shape(model.init, jax.random.key(0), Batch.of([[1, 2]]))["params"]
    stored = jax.tree.map(lambda x: np.ones(x.shape, jnp.bfloat16), shapes)
    state = create_state(model, o, small.mesh_of(1, 1, 1), 0, params=stored)
    assert floats((state.params, state.opt_state)) == {F32}


def test_adapters_and_averages_of_a_bfloat16_base_are_float32():
    model = build(small.MODEL.replace(param_dtype="bfloat16"))
    axes = model.logical_axes()
    plan = Plan(axes, Lora(2))
    o = optimizer.build("adamw", lambda _: RATE, by_path(plan.trained_axes()))
    state = abstract_state(model, o, small.mesh_of(1, 1, 1), extras=Extras(ema=True, plan=plan))
    assert floats(state.fixed) == {jnp.dtype("bfloat16")}
    assert floats((state.params, state.opt_state, state.ema)) == {F32}
    assert narrow.described(state, "float32").startswith(
        "float32 parameters beside a base in bfloat16; float32 moments"
    )


def test_the_average_is_of_rounded_parameters():
    """Updates far below the spacing of bfloat16 move the masters only; the average in float64."""
    model, _, _ = small.parts(small.MODEL.replace(param_dtype="bfloat16"))
    schedule = lambda _: 1e-6
    o = optimizer.adamw(schedule)
    state = create_state(model, o, small.mesh_of(1, 1, 1), 0, extras=Extras(ema=True))
    step = jax.jit(make_train_step(model, token_loss, o, schedule, ema=0.3))
    of = lambda tree: {n: np.asarray(x, np.float64) for n, x in by_path(tree).items()}
    begun, wanted = of(state.params), of(state.ema)
    batch = Batch.of(np.random.default_rng(0).integers(0, 64, (4, 8)))
    for n in range(4):
        state, _ = step(state, batch)
        d = min(0.3, (1 + n) / (10 + n))
        masters = of(state.opt_state["master"])
        wanted = {name: d * x + (1 - d) * masters[name] for name, x in wanted.items()}
    average = of(state.ema)
    for name, x in wanted.items():
        np.testing.assert_allclose(average[name], x, rtol=1e-6)
    assert any(np.any(average[name] != x) for name, x in begun.items())
    up = "layers/mlp/up"
    assert np.mean(of(state.params)[up] == begun[up]) > 0.9
    assert np.mean(np.abs(average[up] - begun[up]) > 1e-7) > 0.9


def test_a_rounding_that_would_be_ignored_is_refused():
    from configs.tiny import get_config

    config = get_config("")
    config.optimizer.rounding = "stochastic"
    with pytest.raises(ConfigError, match=r"optimizer\.rounding='stochastic' would be ignored"):
        settings.check(config, 1)
