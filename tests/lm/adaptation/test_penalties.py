"""Penalties equal the papers' formulas for any weights, micro-batches and mesh; none when off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.adaptation import lora, penalties, plan
from lm.adaptation.lora import Lora
from lm.batch import Batch
from lm.distributed import rules, sharding
from lm.losses import divergence
from lm.losses.tokens import token_loss
from lm.models import build
from lm.training import optimizer
from lm.training.state import Extras, abstract_state, create_state
from lm.training.step import make_train_step
from tests.lm.small_models import drawn, identical
from tests.lm.training import small

MODEL = build(small.MODEL.replace(n_layers=1))
STRENGTHS = dict(l2_sp_strength=0.3, ewc_strength=0.7, kl_strength=0.5)


@functools.cache
def parts():
    """Return (params, fixed, batch with padding and unequal weights).

    `fixed` holds another base and Fisher information.
    """
    params, base = (drawn(MODEL, seed=seed) for seed in (0, 1))
    fisher = jax.tree.map(lambda x: jnp.square(x) + 0.1, base)
    rng = np.random.default_rng(0)
    segments = np.ones((4, 10), np.int32)
    segments[1, 4:] = 0
    batch = Batch.of(rng.integers(0, 64, (4, 10)), segments)
    return (
        params,
        {"base": base, "fisher": fisher},
        batch.replace(weights=batch.weights * rng.uniform(0.5, 2, (4, 10)).astype(np.float32)),
    )


def formula(params, fixed, batch, direction, *, l2_sp_strength, ewc_strength, kl_strength):
    """Mean loss with all penalties, from whole logits, as the papers write it."""
    mine, theirs = (MODEL.apply({"params": p}, batch).logits for p in (params, fixed["base"]))
    p, q = jax.nn.softmax(mine), jax.nn.softmax(theirs)
    kl = jnp.sum(q * jnp.log(q / p) if direction == "forward" else p * jnp.log(p / q), axis=-1)
    task = -jnp.take_along_axis(jnp.log(p), batch.targets[..., None], -1)[..., 0]
    mean = lambda x: jnp.sum(x * batch.weights) / jnp.sum(batch.weights)
    square = jax.tree.map(lambda a, b: jnp.square(a - b), params, fixed["base"])
    total = lambda tree: sum(jnp.sum(x) for x in jax.tree.leaves(tree))
    weighed = total(jax.tree.map(jnp.multiply, fixed["fisher"], square))
    return (
        mean(task)
        + kl_strength * mean(kl)
        + l2_sp_strength / 2 * total(square)
        + ewc_strength / 2 * weighed
    )


@pytest.mark.parametrize("direction", divergence.DIRECTIONS)
def test_a_penalised_loss_or_its_gradient_is_not_the_formula(direction):
    params, fixed, batch = parts()
    wrapped = penalties.penalised(token_loss, direction=direction, **STRENGTHS)

    def mean(p):
        loss = wrapped(MODEL, p, batch, None, fixed=fixed, chunk=3)
        return loss.first.sum / loss.first.weight

    ours, theirs = (
        jax.jit(jax.value_and_grad(f))(params)
        for f in (mean, lambda p: formula(p, fixed, batch, direction, **STRENGTHS))
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), ours[1], theirs[1]
    )


@pytest.mark.parametrize("direction", divergence.DIRECTIONS)
def test_a_divergence_or_its_gradient_is_not_the_formula_in_float64(direction):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, y, step = (
            rng.normal(size=(3, 7)) * 3,
            rng.normal(size=(3, 7)) * 3,
            rng.normal(size=(3, 7)),
        )
        softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)

        def by_hand(z):
            p, q = softmax(z), softmax(y)
            return (q * np.log(q / p) if direction == "forward" else p * np.log(p / q)).sum(-1)

        ours = lambda z: divergence.divergence(z, jnp.asarray(y), direction)
        assert ours(jnp.asarray(x)).dtype == jnp.float64
        np.testing.assert_allclose(ours(jnp.asarray(x)), by_hand(x), rtol=1e-12)
        slope = (jax.grad(lambda z: ours(z).sum())(jnp.asarray(x)) * step).sum()
        np.testing.assert_allclose(
            slope, (by_hand(x + 1e-6 * step) - by_hand(x - 1e-6 * step)).sum() / 2e-6, rtol=1e-7
        )
        np.testing.assert_allclose(ours(jnp.asarray(y)), 0, atol=1e-14)


def test_the_base_gets_a_gradient():
    params, fixed, batch = parts()
    wrapped = penalties.penalised(token_loss, **STRENGTHS)
    total = lambda f: wrapped(MODEL, params, batch, None, fixed=f).first.sum
    gradient = jax.jit(jax.grad(total))({"base": fixed["base"], "fisher": fixed["fisher"]})
    assert all(not np.any(x) for x in jax.tree.leaves(gradient["base"]))


def test_no_strength_is_another_program():
    assert penalties.penalised(token_loss) is token_loss
    from configs.defaults import defaults

    assert plan.of_config(defaults().adaptation, MODEL.logical_axes()) is None


def steps(shape, accumulate, adaptation, batch, base):
    mesh, rate = small.mesh_of(*shape), lambda _: 1e-2
    # eps=1 makes AdamW nearly plain gradient descent; otherwise tiny gradients become signs.
    sgd = optimizer.build("adamw", rate, {}, clip=0.0, weight_decay=0.0, eps=1.0)
    extras = Extras(plan=adaptation)
    state = create_state(
        MODEL, sgd, mesh, 0, params=base["base"], extras=extras, fisher=base["fisher"]
    )
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(MODEL, sgd, mesh, extras=extras))
    loss = adaptation.loss(token_loss)
    step = make_train_step(
        MODEL, loss, sgd, rate, accumulate=accumulate, shardings=shardings.params
    )
    with sharding.activate(mesh):
        step, seen = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0), []
        for _ in range(3):
            state, metrics = step(state, batch)
            seen.append({name: float(x) for name, x in metrics.items()})
    return jax.device_get(state), seen


@pytest.mark.parametrize("low_rank", [None, Lora(2)])
def test_a_penalty_depends_on_micro_batches_or_devices(low_rank):
    _, fixed, batch = parts()
    adaptation = plan.Plan(MODEL.logical_axes(), low_rank, l2_sp=0.3, ewc=0.7, kl=0.5)
    (one, seen), (cut, seen_cut) = (
        steps(*how, adaptation, batch, fixed) for how in (((1, 1, 1), 1), ((1, 2, 1), 2))
    )
    assert identical(one.fixed, jax.device_get(fixed)) and identical(cut.fixed, one.fixed)
    for a, b in zip(seen, seen_cut, strict=True):
        assert a == pytest.approx(b, rel=2e-5, abs=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), one.params, cut.params
    )
    assert seen[0]["kl"] == pytest.approx(0, abs=1e-6) and seen[0]["l2_sp"] == seen[0]["ewc"] == 0.0
    assert all(seen[-1][name] > 0 for name in ("kl", "l2_sp", "ewc"))
    assert seen[-1]["loss"] == pytest.approx(
        seen[-1]["task"] + seen[-1]["l2_sp"] + seen[-1]["ewc"] + 0.5 * seen[-1]["kl"], rel=1e-5
    )


def test_the_distance_of_adapters_is_not_that_of_the_merged_kernels():
    params, _, _ = parts()
    axes = rules.by_path(MODEL.logical_axes())
    adapters = jax.tree.map(
        lambda x: x + 0.1, lora.initialise(params, axes, Lora(2), jax.random.key(0))
    )
    merged = lora.merge(params, adapters, 2.0)
    some = penalties.l2_sp(merged, params, sorted(lora.kernels(axes, lora.PATTERN)))
    assert (
        float(some) == pytest.approx(float(penalties.l2_sp(merged, params)), rel=1e-6)
        and float(some) > 0
    )
