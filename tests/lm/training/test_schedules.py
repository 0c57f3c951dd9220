"""Every schedule against its closed form, computed for each update in float64."""

import math

import numpy as np
import pytest

from configs.defaults import defaults
from lm.training import optimizer, schedules, settings

PEAK, WARMUP, STEPS, FINAL, COOLDOWN = 2e-3, 8, 50, 0.2, 12


def down(name, n):
    """Share of the peak at update n after warm-up, as in the papers."""
    done = min(1.0, (n - WARMUP) / (STEPS - WARMUP))
    return {
        "cosine": FINAL + (1 - FINAL) * (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - (1 - FINAL) * done,
        "wsd": 1 - (1 - FINAL) * min(1.0, max(0, n - (STEPS - COOLDOWN)) / COOLDOWN),
        "inverse_sqrt": math.sqrt(WARMUP / (n + 1)),
        "constant": 1.0,
    }[name]


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_schedule_is_not_its_closed_form(name):
    rate = schedules.schedule(name, PEAK, WARMUP, STEPS, FINAL, COOLDOWN)
    wanted = [PEAK * ((n + 1) / WARMUP if n < WARMUP else down(name, n)) for n in range(STEPS + 10)]
    np.testing.assert_allclose([float(rate(n)) for n in range(STEPS + 10)], wanted, rtol=2e-6)


def test_the_cosine_is_not_the_one_that_older_runs_followed():
    """A resumed run gets bit for bit the values of earlier versions."""
    import jax.numpy as jnp

    def before(count):
        count = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((count - WARMUP) / max(1, STEPS - WARMUP), 0.0, 1.0)
        falling = FINAL + (1 - FINAL) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return PEAK * jnp.where(count < WARMUP, (count + 1) / max(1, WARMUP), falling)

    rate = schedules.schedule("cosine", PEAK, WARMUP, STEPS, FINAL)
    assert all(float(rate(n)) == float(before(n)) for n in range(STEPS + 5))


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_run_without_warmup_does_not_start_at_the_peak(name):
    assert float(schedules.schedule(name, 1.0, 0, 10, 0.1, 3)(0)) == 1.0


def test_a_run_shorter_than_its_warmup_never_reaches_its_peak():
    """A warm-up of 100 in a run of 8 becomes 4, then a half cosine over 4; values by hand."""
    config = defaults()
    config.optimizer.update(learning_rate=1.0, warmup=100)
    config.steps = 8
    _, schedule = optimizer.of_config(config.optimizer, 8, {})
    falling = [0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * share)) for share in (0, 0.25, 0.5, 0.75)]
    np.testing.assert_allclose(
        [schedule(n) for n in range(8)], [0.25, 0.5, 0.75, 1.0, *falling], rtol=1e-6
    )
    assert (
        settings.shortened(config)
        == "optimizer.warmup=100 is shortened to 4 updates, half of steps=8"
    )
    config.optimizer.warmup = 4
    assert not settings.shortened(config)
