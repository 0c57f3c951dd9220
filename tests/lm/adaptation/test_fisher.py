"""Diagonal Fisher information, against closed forms and row by row for language models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.adaptation import fisher
from lm.batch import Batch
from lm.losses.tokens import token_loss
from lm.models import build
from lm.models.config import ConfigError
from tests.lm.small_models import drawn
from tests.lm.training import small

MODEL = build(
    small.MODEL.replace(n_layers=1, vocab_size=16, d_model=8, d_ff=8, n_heads=1, n_kv_heads=1)
)


@pytest.fixture(scope="module")
def params():
    return drawn(MODEL)


@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_a_logistic_regression_s_is_not_its_closed_form(chunk):
    rng = np.random.default_rng(0)
    w, x, y = rng.normal(size=3), rng.normal(size=(12, 3)), rng.integers(0, 2, 12)
    nll = lambda p, row: jnp.logaddexp(0.0, (1 - 2 * row["y"]) * (row["x"] @ p))
    rows = {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}
    found = fisher.diagonal(nll, jnp.asarray(w, jnp.float32), rows, chunk)
    chance = 1 / (1 + np.exp(-x @ w))
    np.testing.assert_allclose(found, ((chance - y)[:, None] ** 2 * x**2).sum(0), rtol=1e-5)
    # The expectation over the model's own labels is the true Fisher information, sum of p (1 - p)
    # x^2.
    both = sum(
        chance_of[:, None] * (chance - label)[:, None] ** 2 * x**2
        for label, chance_of in ((1, chance), (0, 1 - chance))
    )
    np.testing.assert_allclose(
        both.sum(0), ((chance * (1 - chance))[:, None] * x**2).sum(0), rtol=1e-10
    )


def test_a_language_model_s_is_not_the_mean_over_rows_of_squared_gradients(params):
    tokens = np.random.default_rng(0).integers(0, 16, (4, 6))
    empty = Batch.of(tokens[:2], np.zeros((2, 6)))  # rows of padding do not count
    found, rows = fisher.fisher(MODEL, token_loss, params, [Batch.of(tokens), empty], chunk=2)
    assert rows == 4
    gradient = jax.jit(jax.grad(lambda p, batch: token_loss(MODEL, p, batch).first.sum))
    squares = [jax.tree.map(jnp.square, gradient(params, Batch.of(row[None]))) for row in tokens]
    wanted = jax.tree.map(lambda *xs: sum(xs) / 4, *squares)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, wanted)


def test_sampled_targets_are_not_drawn_from_the_model(params):
    batch = Batch.of(np.tile(np.arange(5), (1500, 1)))
    drawn = np.asarray(fisher.draw(MODEL, params, batch, jax.random.key(1)))
    out = jax.jit(MODEL.apply)({"params": params}, Batch.of(np.arange(5)[None]))
    chance = np.asarray(jax.nn.softmax(out.logits))[0]
    share = np.stack([np.bincount(drawn[:, t], minlength=16) / len(drawn) for t in range(5)])
    assert (
        np.abs(share - chance).max() < 5 * np.sqrt(0.25 / 1500)
        and np.abs(share - chance).mean() < 0.01
    )


def test_the_sampled_kind_does_not_approach_the_expectation_over_the_model(params):
    """With one token of context the expectation over all 16 targets has a closed form."""
    tokens = np.tile([[3, 5]], (256, 1))
    found, _ = fisher.fisher(MODEL, token_loss, params, [Batch.of(tokens)], sampled=True, chunk=64)
    both = jax.jit(
        jax.value_and_grad(
            lambda p, target: (
                token_loss(MODEL, p, Batch.of([[3, 5]]).replace(targets=target)).first.sum
            )
        )
    )
    outcomes = [both(params, jnp.array([[t, 0]])) for t in range(16)]
    wanted = jax.tree.map(
        lambda *gs: sum(
            np.exp(-float(v)) * jnp.square(g) for (v, _), g in zip(outcomes, gs, strict=True)
        ),
        *[g for _, g in outcomes],
    )
    total = lambda tree: sum(float(x.sum()) for x in jax.tree.leaves(tree))
    assert total(found) == pytest.approx(total(wanted), rel=0.15)


def test_a_file_comes_back_different_or_fits_another_model(params, tmp_path):
    found = jax.tree.map(jnp.square, params)
    fisher.save(tmp_path / "x" / "f.safetensors", found, 7, sampled=False)
    back = fisher.load(tmp_path / "x" / "f.safetensors", params)
    jax.tree.map(np.testing.assert_array_equal, back, found)
    other = {name: x for name, x in params.items() if name != "head"}
    with pytest.raises(ConfigError, match="is of another model: it differs in head/table"):
        fisher.load(tmp_path / "x" / "f.safetensors", other)
    with pytest.raises(ConfigError, match=r"cannot be read .*python -m lm.fisher writes one"):
        fisher.load(tmp_path / "none", params)
