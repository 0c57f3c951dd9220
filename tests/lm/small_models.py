"""Small models with random parameters, and bit-exact comparison, for the tests of weights."""

import jax
import numpy as np

import lm
from lm import families


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
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: jax.numpy.asarray(rng.normal(size=x.shape), x.dtype), model.shapes()
    )


def drawn(model, scale=None, seed=0):
    """Random parameters around an initialiser's constants; unlike `init`, compiles nothing.

    scale: standard deviation, by default the model's initializer_range.
    """
    rng, ones = np.random.default_rng(seed), ("scale", "skip")
    scale = model.config.initializer_range if scale is None else scale

    def one(path, x):
        centre = jax.tree_util.keystr(path[-1:], simple=True).endswith(ones)
        centre = centre and not model.config.norm_plus_one
        return jax.numpy.asarray(centre + scale * rng.normal(size=x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(one, model.shapes())


def identical(a, b):
    leaves = lambda tree: {
        jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )
