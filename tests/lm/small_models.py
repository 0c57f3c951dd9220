"""Small models with random parameters, and bit-exact comparison, for the tests of weights."""

import jax
import numpy as np

import lm
from lm import families
from lm.batch import Batch


def tiny(family="llama", **changes):
    """(model, params) of a small model; all parameters are random, biases and norms included."""
    config = families.preset(family, "tiny")
    small = dict(vocab_size=37, d_model=16, n_layers=2 * config.period)
    if config.n_heads:
        # The d_ff of GPT is always four times its width.
        small |= dict(head_dim=4, d_ff=64 if family == "openai-gpt" else 24)
    if config.ssm_inner:
        small |= dict(ssm_inner=32, ssm_head_dim=4 if config.ssm_heads else 0)
    if config.logit_scale != 1.0:
        small |= dict(logit_scale=16**-0.5)  # T5's logit scale depends on its width
    model = lm.build(config.replace(**small | changes))
    shapes = jax.eval_shape(model.init, jax.random.key(0), Batch.of([[0, 0]]))["params"]
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: jax.numpy.asarray(rng.normal(size=x.shape), x.dtype), shapes
    )


def identical(a, b):
    leaves = lambda tree: {
        jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )
