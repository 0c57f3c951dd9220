"""Schedule, weight decay and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.batch import Batch
from lm.families import preset
from lm.models import build
from lm.models.config import ConfigError
from lm.training import optimizer


def test_the_schedule_does_not_rise_peak_and_fall():
    rate = optimizer.learning_rate(1.0, 10, 100, 0.1)
    assert [round(float(rate(n)), 6) for n in (0, 9, 10, 55, 100, 200)] == [0.1, 1.0, 1.0, 0.55, 0.1, 0.1]


@pytest.mark.parametrize(("family", "size"), [("gpt2", "tiny"), ("llama", "tiny"), ("bert", "tiny")])
def test_norms_and_biases_decay_or_matrices_do_not(family, size):
    model = build(preset(family, size))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), Batch.of([[0, 0]]))["params"])
    shares = {optimizer.path_name(path): share for path, share in jax.tree_util.tree_leaves_with_path(optimizer.decay_mask(params))}
    vectors = {name for name in shares if name.endswith(("/scale", "bias"))}
    assert vectors and {name for name, share in shares.items() if share == 0.0} == vectors
    assert {shares[name] for name in shares.keys() - vectors} == {1.0}


def test_a_parameter_without_a_decay_rule_is_skipped_silently():
    with pytest.raises(ConfigError, match="no pattern for parameter a/kernel"):
        optimizer.decay_mask({"a": {"kernel": 0}}, ((r"bias$", 0.0),))


def test_an_update_differs_from_optax_adamw():
    params = {"norm": {"scale": jnp.ones(3)}, "up": jnp.full((2, 2), 0.5)}
    gradients = jax.tree.map(lambda p: jnp.full_like(p, 0.3), params)
    ours = optimizer.adamw(lambda _: 0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.2, clip=0.25)
    mask = {"norm": {"scale": False}, "up": True}
    theirs = optax.chain(optax.clip_by_global_norm(0.25), optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.2, mask=mask))
    a, b = ours.init(params), theirs.init(params)
    for _ in range(3):
        u, a = ours.update(gradients, a, params)
        v, b = theirs.update(gradients, b, params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), u, v)
