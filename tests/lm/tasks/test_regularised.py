"""Label smoothing as in torch and z-loss as in PaLM, for any split; no computation when off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from lm import fisher
from lm.adaptation import fisher as information
from lm.batch import Batch
from lm.data import batches
from lm.data.packed import synthetic
from lm.distributed import sharding
from lm.evaluation.perplexity import make_evaluator
from lm.losses import cross_entropy
from lm.losses.tokens import token_loss
from lm.models import build
from lm.tasks import NextToken
from lm.training import loop, trackers
from lm.training.state import create_state
from lm.training.step import make_train_step
from tests.lm.small_models import drawn
from tests.lm.training import runs, small

CONFIG = small.MODEL.replace(n_layers=1)
EXTRAS = [(0.1, 0.0), (0.0, 1e-2), (0.3, 0.05)]


def logits_and_targets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 5, 11)).astype(np.float32) * 4, rng.integers(0, 11, (3, 5))


@pytest.mark.parametrize(("smoothing", "z"), EXTRAS)
def test_a_token_s_loss_is_not_torch_s_with_a_squared_log_z(smoothing, z):
    logits, targets = logits_and_targets()
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, 11),
        torch.tensor(targets).reshape(-1),
        label_smoothing=smoothing,
        reduction="none",
    )
    theirs = (
        theirs.numpy().reshape(3, 5) + z * np.log(np.exp(logits.astype(np.float64)).sum(-1)) ** 2
    )
    ours = cross_entropy.token_losses(logits, targets) + cross_entropy.added_losses(
        logits, targets, cross_entropy.Extra(smoothing, z)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def formula(model, params, batch, smoothing, z):
    """(regularised loss, cross-entropy alone) from all logits at once."""
    logits = model.apply({"params": params}, batch).logits
    wanted = (1 - smoothing) * jax.nn.one_hot(
        batch.targets, logits.shape[-1]
    ) + smoothing / logits.shape[-1]
    squares = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    learned = jnp.sum((optax.softmax_cross_entropy(logits, wanted) + z * squares) * batch.weights)
    return learned, jnp.sum(
        optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets) * batch.weights
    )


@pytest.mark.parametrize(("smoothing", "z"), EXTRAS[2:])
def test_value_or_gradient_is_not_that_of_the_plain_formula(smoothing, z):
    model = build(CONFIG)
    segments = np.ones((2, 13), int)
    segments[1, 9:] = 0
    batch = Batch.of(np.random.default_rng(0).integers(0, 64, (2, 13)), segments)
    params = drawn(model)
    ours = lambda p: token_loss(model, p, batch, chunk=5, label_smoothing=smoothing, z_loss=z)
    (theirs, plain), gradient = jax.jit(
        jax.value_and_grad(lambda p: formula(model, p, batch, smoothing, z), has_aux=True)
    )(params)
    forward = jax.jit(ours)(params)  # without a gradient another code path runs
    (value, found), of_it = jax.jit(
        jax.value_and_grad(lambda p: (ours(p).first.sum, ours(p)), has_aux=True)
    )(params)
    for loss in (forward, found):
        np.testing.assert_allclose(loss.first.sum, theirs, rtol=1e-5)
        np.testing.assert_allclose(loss.metrics["cross_entropy"], plain, rtol=1e-5)
        assert float(loss.first.weight) == batch.weights.sum()
    assert float(value) == float(found.first.sum) and not np.isclose(theirs, plain, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), of_it, gradient
    )


def test_what_is_off_is_still_computed():
    model = build(CONFIG)
    batch = Batch.of(np.random.default_rng(0).integers(0, 64, (2, 8)))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)["params"])
    text = lambda **options: str(
        jax.make_jaxpr(
            jax.value_and_grad(lambda p: token_loss(model, p, batch, **options).first.sum)
        )(params)
    )
    off, smoothed, both = text(), text(label_smoothing=0.1), text(label_smoothing=0.1, z_loss=1e-4)
    assert off == text(label_smoothing=0.0, z_loss=0.0)
    assert off.count(" log ") == smoothed.count(" log ") < both.count(" log ") and off.count(
        " add "
    ) < smoothed.count(" add ")
    assert jax.eval_shape(lambda p: token_loss(model, p, batch).metrics, params) == {}


def task_loss(model, params, batch, rng=None):
    return token_loss(model, params, batch, rng, label_smoothing=0.1, z_loss=1e-2)


def test_micro_batches_or_a_mesh_change_the_step():
    tokens = np.random.default_rng(0).integers(0, 64, (8, 16))
    segments = np.ones((8, 16), np.int32)
    segments[1, 3:] = segments[3, 5:] = segments[6, 9:] = 0
    found = []
    for shape, accumulate in (((1, 1, 1), 1), ((2, 2, 2), 2)):
        model, adamw, schedule = small.parts(CONFIG, clip=0.0)
        mesh = small.mesh_of(*shape)
        state = create_state(model, adamw, mesh, 0, params=drawn(model))
        step = make_train_step(model, task_loss, adamw, schedule, accumulate=accumulate)
        with sharding.activate(mesh):
            batch = jax.device_put(
                Batch.of(tokens, segments), sharding.batch_sharding(mesh, (8, 16))
            )
            _, metrics = jax.jit(step)(state, batch)
        found.append({name: float(value) for name, value in metrics.items()})
    assert found[0]["loss"] > found[0]["cross_entropy"] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_evaluation_includes_what_only_training_adds():
    model, mesh = build(CONFIG), small.mesh_of(1, 1, 1)
    packed = synthetic(64, 4, 16)
    (_, batch) = next(batches.in_order(packed, 4, sharding.batch_sharding(mesh, (4, 16))))
    params = drawn(model)
    trained = jax.jit(lambda p: task_loss(model, p, batch))(params)
    measured = make_evaluator(model, mesh, 4)(params, packed).loss
    assert measured == pytest.approx(
        float(trained.metrics["cross_entropy"] / trained.first.weight), rel=1e-5
    )
    assert measured < 0.99 * float(trained.first.sum / trained.first.weight)


def test_a_run_does_not_report_the_loss_without_or_its_fisher_information_is_of_the_loss_with(
    tmp_path, monkeypatch
):
    added = {"task.label_smoothing": 0.2, "task.z_loss": 0.01}
    assert loop.train(runs.config(tmp_path, steps=2, **added), tmp_path / "run") == 0
    row = trackers.read(tmp_path / "run")[0]
    assert row["loss"] > row["cross_entropy"] + 0.1 > 5
    seen = []
    monkeypatch.setattr(
        information, "fisher", lambda model, loss, *_, **__: seen.append(loss) or ({}, 0)
    )
    monkeypatch.setattr(information, "save", lambda *_: None)
    fisher.write(
        runs.config(tmp_path, init_from=str(tmp_path / "run"), steps=1, **added),
        str(tmp_path / "fisher"),
        sampled=False,
    )
    (loss,) = seen
    assert loss.__func__ is NextToken.loss
    assert loss.__self__ == NextToken(chunk=0, label_smoothing=0.0, z_loss=0.0)
