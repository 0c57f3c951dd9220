"""Interpolation and soups: the endpoints are the models themselves, and a soup is a mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.adaptation import interpolation
from lm.models.config import ConfigError
from tests.lm.small_models import identical


def model(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        "a": {"b": jnp.asarray(rng.normal(size=(3, 4)), dtype)},
        "c": jnp.asarray(rng.normal(size=5), dtype),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_end_is_not_its_model_bit_for_bit_or_the_middle_not_between(dtype):
    base, tuned = model(0, dtype), model(1, dtype)
    assert identical(interpolation.interpolate(base, tuned, 0.0), base)
    assert identical(interpolation.interpolate(base, tuned, 1.0), tuned)
    found = interpolation.interpolate(base, tuned, 0.3)
    wanted = jax.tree.map(
        lambda x, y: 0.7 * np.asarray(x, np.float64) + 0.3 * np.asarray(y, np.float64), base, tuned
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64), b, rtol=1e-2 if dtype != jnp.float32 else 1e-6
        ),
        found,
        wanted,
    )
    assert found["c"].dtype == dtype


def test_a_soup_is_not_the_mean():
    models = [model(seed) for seed in range(3)]
    jax.tree.map(
        lambda s, *ms: np.testing.assert_allclose(s, np.mean(ms, axis=0), rtol=1e-6),
        interpolation.soup(models),
        *models,
    )


def test_a_greedy_soup_keeps_what_makes_it_worse():
    # The loss is the distance from 0: 1 and -0.8 improve each other, 4 and 9 make it worse.
    values = [
        4.0,
        1.0,
        -0.8,
        9.0,
    ]
    soup, kept = interpolation.greedy_soup(
        [{"w": jnp.float32(v)} for v in values], lambda m: abs(float(m["w"]))
    )
    assert kept == [2, 1] and float(soup["w"]) == pytest.approx(0.1)


def test_models_of_different_shapes_are_mixed():
    other = model(1) | {"c": jnp.zeros(6)}
    with pytest.raises(
        ConfigError,
        match=r"not of one architecture: 1 parameters differ, such as c \(\(5,\) and \(6,\)\)",
    ):
        interpolation.interpolate(model(0), other, 0.5)
