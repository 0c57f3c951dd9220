"""bfloat16 gradients equal those of float32 up to rounding, for sums over any number of tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import families
from lm.batch import Batch
from lm.losses.tokens import token_loss
from lm.models.layers import in_dtype, rows

KINDS = ("gpt2", "llama", "bert", "t5", "bart", "marian", "mamba", "mamba2", "bamba")
QUICK = ("bert", "t5", "mamba", "bamba")
VOCABULARY = 512


def zipf(shape, seed=0):
    """Tokens of which a quarter are the first one."""
    return np.minimum(np.random.default_rng(seed).zipf(1.3, size=shape) - 1, VOCABULARY - 1)


def case(kind: str, batch_size: int, length: int, **changes):
    """Return (mean loss of float32 parameters computed in a dtype, function that draws them)."""
    c = families.preset(kind, "tiny").replace(
        vocab_size=VOCABULARY, max_length=length, dropout=0.0, **changes
    )
    shape = (batch_size, length)
    types = (
        np.arange(length)[None] * np.ones(shape, np.int32) > length // 3
        if c.type_vocab_size
        else None
    )
    batch = Batch.of(
        zipf(shape), types=types, encoder_tokens=zipf(shape, 1) if c.encoder_layers else None
    )
    short = Batch.of([[1, 2]], encoder_tokens=[[1, 2]] if c.encoder_layers else None)

    def loss(params, dtype):
        found = token_loss(lm.build(c.replace(dtype=dtype)), params, batch)
        return found.first.sum / found.first.weight

    return loss, lambda: lm.build(c).init(jax.random.key(0), short)["params"]


def rounded(params):
    """The same parameters, matrices rounded to bfloat16 numbers."""
    near = lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) if x.ndim > 1 else x
    return jax.tree.map(near, params)


def errors(loss, initial, dtype="bfloat16", change=lambda params: params) -> dict[str, float]:
    """Relative error of each parameter's gradient against float32, in norm.

    The gradient is computed in `dtype`, at the parameters that `change` returns.
    """
    params = jax.jit(initial)()
    of = lambda dtype, params: jax.jit(jax.grad(functools.partial(loss, dtype=dtype)))(params)
    exact, rough = of("float32", params), of(dtype, change(params))
    assert {x.dtype for x in jax.tree.leaves(rough)} == {jnp.dtype("float32")}
    norm = lambda x: float(jnp.linalg.norm(x))
    of = dict(
        jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: norm(a - b) / norm(a), exact, rough)
        )
    )
    # Softmax ignores a shift of all keys, so the gradient of their bias is 0 and its float32 value
    # is rounding noise.
    return {
        name: x for path, x in of.items() if "key_bias" not in (name := jax.tree_util.keystr(path))
    }


def test_a_frequent_token_s_rounded_gradient_is_whole():
    """bfloat16 holds no odd number above 256, so a bfloat16 sum of ones would stop there."""
    tokens = np.zeros(4096, np.int32)
    x = np.random.default_rng(0).normal(1, 1, (4096, 8)).astype(jnp.bfloat16)
    total = lambda op, *args: jax.grad(
        lambda p: jnp.sum(in_dtype(op, "bfloat16", p, *args).astype(jnp.float32))
    )
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 4e-3)):  # dtype of the parameter
        table, vector = jnp.ones((3, 8), dtype), jnp.ones(8, dtype)
        np.testing.assert_array_equal(total(rows, tokens)(table)[:, 0], [4096, 0, 0])
        np.testing.assert_array_equal(total(jnp.add, x)(vector), np.full(8, 4096))
        of_scale = np.asarray(total(jnp.multiply, x)(vector), np.float64)
        np.testing.assert_allclose(of_scale, x.astype(np.float64).sum(0), rtol=tolerance)
    assert total(rows, tokens)(table).dtype == jnp.bfloat16


def narrow_sums(jaxpr, least: int):
    """Equations that sum at least `least` bfloat16 numbers into one, in nested jaxprs too."""
    for eqn in jaxpr.eqns:
        inputs, outputs = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
        if eqn.primitive.name in ("reduce_sum", "cumsum") and outputs[0].dtype == jnp.bfloat16:
            summed = (
                inputs[0].size // outputs[0].size
                if eqn.primitive.name == "reduce_sum"
                else inputs[0].shape[eqn.params["axis"]]
            )
            if summed >= least:
                yield eqn
        if (
            eqn.primitive.name == "scatter-add"
            and outputs[0].dtype == jnp.bfloat16
            and inputs[1].size >= least
        ):
            yield eqn
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from narrow_sums(getattr(inner, "jaxpr", inner), least)


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_no_sum_over_tokens_is_taken_in_bfloat16(kind):
    loss, initial = case(kind, 2, 64)
    traced = jax.make_jaxpr(jax.grad(functools.partial(loss, dtype="bfloat16")))(
        jax.eval_shape(initial)
    )
    assert not [str(eqn) for eqn in narrow_sums(traced.jaxpr, 48)]


def test_gradients_in_bfloat16_are_those_of_float32():
    found = errors(
        *case(
            "bert",
            32,
            128,
            n_layers=1,
            layers="separate",
            d_model=16,
            n_heads=1,
            n_kv_heads=1,
            head_dim=16,
            d_ff=16,
        )
    )
    assert max(found.values()) < 0.02, found


# T5's initial attention is nearly uniform, so the gradients of its relative positions are small
# differences of large terms. Rounding the weights to bfloat16 moves them by more than 2 %, however
# exactly the rest is computed: see the test below. transformers' T5 with these weights and 8 x 512
# of these tokens has an error of 0.034 under torch's autocast, and 0.72 with bfloat16 parameters.
T5 = pytest.param(
    "t5", marks=pytest.mark.xfail(strict=True, reason="the error is 0.048 and 0.02 is asked")
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [T5 if kind == "t5" else kind for kind in KINDS])
def test_gradients_in_bfloat16_are_those_of_float32_at_length(kind):
    found = errors(*case(kind, 32, 1024, remat="full"))
    assert max(found.values()) < 0.02, found


def positions(found: dict[str, float]) -> dict[str, float]:
    return {name: error for name, error in found.items() if "relative_bias" in name}


@pytest.mark.slow
def test_t5_s_relative_positions_are_as_far_off_as_rounding_its_weights_makes_them():
    made = case("t5", 8, 512, remat="full")
    least = positions(errors(*made, dtype="float32", change=rounded))
    found = positions(errors(*made))
    assert max(least.values()) > 0.02, least
    assert all(found[name] < 1.5 * least[name] for name in least), (found, least)
