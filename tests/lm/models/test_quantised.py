"""int8 weights: the same logits as their values in float64, and half a step of rounding at most."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import lm
from lm.models.matmul import SCALE, weighted
from lm.models.matrices import matrix
from lm.models.quantised import quantise
from lm.weights.loading import load
from tests.lm.small_models import drawn, tiny
from tests.retrieval.models import save_reader

FAMILIES = (
    *("gpt2", "t5", "mamba2"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "bert", "mamba", "bamba")),
)


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def batch_of(c):
    tokens = np.random.default_rng(1).integers(1, c.vocab_size, (2, 7))
    return lm.Batch.of(tokens, encoder_tokens=tokens if c.encoder_layers else None)


def restored(model, params, original):
    """(model with an output table of its own, the float32 values that int8 params stand for)."""
    axes, found = flat(model.logical_axes()), {}
    for path, x in flat(params).items():
        if path.endswith(SCALE) and path.removesuffix(SCALE) in flat(params):
            continue
        if x.dtype == jnp.int8:
            inputs = (1,) if path == "head/table" else matrix(path, axes[path]).inputs
            scale = np.asarray(flat(params)[path + SCALE], np.float64)
            values = np.asarray(x, np.float64) * np.expand_dims(scale, inputs)
            table = path == "head/table" and model.config.tie_embeddings
            before = np.asarray(flat(original)["embeddings/token" if table else path], np.float64)
            assert np.all(np.abs(values - before) <= np.expand_dims(scale, inputs) * 0.5001)
            # every channel uses the whole range
            assert np.all(np.abs(np.asarray(x, np.int32)).max(axis=inputs) == 127)
            x = jnp.asarray(values, jnp.float32)
        found[path] = x
    untied = lm.build(model.config.replace(tie_embeddings=False))
    return untied, traverse_util.unflatten_dict(found, sep="/")


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_weights_give_the_logits_of_their_values(family):
    model, _ = tiny(family)
    params = drawn(model, scale=0.3)
    rounded = quantise(model, params)
    same, values = restored(model, rounded, params)
    batch = batch_of(model.config)
    found, expected = lm.forward(model, rounded, batch), lm.forward(same, values, batch)
    close = np.abs(found.logits - expected.logits).max() / np.abs(expected.logits).max()
    assert close < 1e-5
    before = lm.forward(model, params, batch).logits
    assert 0 < np.abs(found.logits - before).max() / np.abs(before).max() < 0.1


def test_what_is_rounded_is_every_matrix_of_a_layer_and_the_output_table():
    for family, others in (("gpt2", ()), ("mamba", ("dt_up", "dt_down", "bc"))):
        model, params = tiny(family)
        rounded = flat(quantise(model, params))
        axes = flat(model.logical_axes())
        kept = {p for p in axes if p.split("/")[-1] in others}
        matrices = {p for p in axes if matrix(p, axes[p])} - kept
        int8 = {path for path, x in rounded.items() if x.dtype == jnp.int8}
        assert int8 == matrices | {"head/table"} and len(matrices) > 2
        assert rounded["embeddings/token"] is flat(params)["embeddings/token"]


def test_decoding_with_int8_weights_writes_what_their_values_write():
    model, _ = tiny("gpt2")
    params = drawn(model, scale=0.5)
    rounded = quantise(model, params)
    tokens = lm.generate(*lm.for_decoding(model, rounded), [[3, 5, 7], [2]], 6, stop_tokens=[])
    same, values = restored(model, rounded, params)
    expected = lm.generate(*lm.separate(same, values), [[3, 5, 7], [2]], 6, stop_tokens=[])
    assert [list(x) for x in tokens] == [list(x) for x in expected]


@pytest.mark.parametrize(
    "equation", ["btd,df->btf", "btd,dhk->bthk", "bthk,hkd->btd", "...d,vd->...v"]
)
@pytest.mark.parametrize("rows", [1, 3])
def test_products_that_round_their_inputs_are_those_of_the_rounded_numbers(equation, rows):
    """Against integers in float64: an input is at most half a step from what it was."""
    rng = np.random.default_rng(0)
    of_y = equation.split("->")[0].split(",")[1]
    y = rng.integers(-127, 128, [{"d": 6, "f": 5, "h": 2, "k": 3, "v": 7}[x] for x in of_y])
    x = rng.normal(size=(1, rows, *y.shape[:2]) if "bthk," in equation else (1, rows, 6))
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    sums = tuple(range(2, x.ndim))
    step = np.abs(x).max(axis=sums, keepdims=True) / 127
    expected = np.einsum(equation, np.rint(x / step) * step, y.astype(np.float64))
    matrices = dict(w=jnp.asarray(y, jnp.int8), w_scale=jnp.float32(0.5))

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.get_variable("params", "w")
            return weighted(self, equation, x, w, "w", jnp.bfloat16, jnp.float32)

    found = Module().apply({"params": matrices}, jnp.asarray(x, jnp.bfloat16))
    assert np.allclose(found, 0.5 * expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_bfloat16_models_with_int8_weights_are_close_to_float32():
    model, _ = tiny("llama", dtype="bfloat16", param_dtype="bfloat16")
    params = drawn(model, scale=0.3)
    batch = batch_of(model.config)
    found = lm.forward(model, quantise(model, params), batch).logits
    exact = lm.build(model.config.replace(dtype="float32", param_dtype="float32"))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    before = lm.forward(exact, wide, batch).logits
    assert 0 < np.abs(found - before).max() / np.abs(before).max() < 0.15


def test_a_model_is_loaded_with_int8_weights(tmp_path):
    save_reader(tmp_path / "reader")
    model, params, _ = load(str(tmp_path / "reader"), quantize="int8")
    before_model, before, _ = load(str(tmp_path / "reader"))
    kinds = lambda params: {x.dtype.name for x in jax.tree.leaves(params)}
    assert flat(params)["head/table"].dtype == jnp.int8
    assert model.config.dtype == "bfloat16" and before_model.config.dtype == "float32"
    assert kinds(params) == {"int8", "bfloat16", "float32"} and kinds(before) == {"float32"}
    exact, _, _ = load(str(tmp_path / "reader"), "float32", "int8")
    assert exact.config.dtype == "float32"
