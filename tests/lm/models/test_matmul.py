"""Products in bfloat16 take their sums in float32, forwards and backwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.matmul import product
from tests.lm.models.test_precision import case


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [
        ("...d,vd->...v", (2, 5, 64), (7, 64)),
        ("bthk,hkd->btd", (2, 5, 4, 16), (4, 16, 6)),
        ("btjgk,bsjk->bjgts", (2, 5, 2, 3, 8), (2, 6, 2, 8)),
    ],
)
@pytest.mark.parametrize("out", [None, "float32"])
def test_the_values_and_gradients_are_those_of_exact_sums(equation, x, y, out):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=x), jnp.bfloat16), jnp.asarray(rng.normal(size=y), "float32")
    found, back = jax.vjp(lambda x, y: product(equation, x, y, "bfloat16", out), x, y)
    assert found.dtype == jnp.dtype(out or "bfloat16")
    x64, y64 = rounded(x), rounded(y)
    exact = np.einsum(equation, x64, y64)
    assert np.abs(np.asarray(found, np.float64) - exact).max() <= (1e-5 if out else 2e-3) * 64
    cotangent = jnp.asarray(rng.normal(size=found.shape), found.dtype)
    dx, dy = back(cotangent)
    assert dx.dtype == jnp.bfloat16 and dy.dtype == jnp.float32
    explicit = equation.replace("...", "bt")
    inputs, result = explicit.split("->")
    of_x, of_y = inputs.split(",")
    g = rounded(cotangent)
    np.testing.assert_allclose(
        np.asarray(dy), np.einsum(f"{of_x},{result}->{of_y}", x64, g), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose(
        np.asarray(dx, np.float64),
        np.einsum(f"{result},{of_y}->{of_x}", g, y64),
        rtol=2**-8,
        atol=1e-4,
    )


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_cpu_refuses_values_of_several_rows_and_heads_cached_by_head(queries, groups):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.random((2, 3, groups, queries, 32)), "bfloat16")
    cached = jnp.asarray(rng.normal(size=(2, 3, 32, 64)), "bfloat16")
    attend = lambda p, v: product("bjgts,bsjk->btjgk", p, v.swapaxes(1, 2), "bfloat16")
    found = jax.jit(attend)(weights, cached)
    exact = np.einsum("bjgts,bjsk->btjgk", rounded(weights), rounded(cached))
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-2)


def test_float32_products_are_those_of_einsum_and_a_wider_x_is_not_cast():
    x, y = jnp.ones((2, 3), "float32") / 3, jnp.ones((3, 4), "float32")
    np.testing.assert_array_equal(
        product("ab,bc->ac", x, y, "float32"), jnp.einsum("ab,bc->ac", x, y)
    )
    assert product("ab,bc->ac", x, y, "bfloat16").dtype == jnp.float32


def narrow_products(jaxpr):
    """Products in nested jaxprs that sum into bfloat16, or whose factors differ in dtype."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            dtypes = {v.aval.dtype for v in eqn.invars}
            if len(dtypes) > 1 or eqn.outvars[0].aval.dtype == jnp.bfloat16:
                yield str(eqn)
        is_jaxpr = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from narrow_products(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {}),
        ("t5", {"attention_backend": "chunked"}),
        ("bert", {}),
        ("mamba2", {}),
        ("mamba", {}),
    ],
)
def test_no_product_of_a_step_sums_in_bfloat16(kind, changes):
    loss, initial = case(kind, 2, 64, **changes)
    traced = jax.make_jaxpr(jax.grad(functools.partial(loss, dtype="bfloat16")))(
        jax.eval_shape(initial)
    )
    assert not list(narrow_products(traced.jaxpr))
