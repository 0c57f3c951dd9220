"""Matrix products accumulated in float32, whatever the compute dtype."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.layers import stored


def matmul(
    module: nn.Module,
    equation: str,
    x: jax.Array,
    name: str,
    shape: tuple[int, ...],
    axes: str,
    init: Callable | None = None,
) -> jax.Array:
    """Multiply x with a parameter that is declared here as by `stored`, in the compute dtype.

    `equation` is that of `jnp.einsum`.
    """
    return product(equation, x, stored(module, name, shape, axes, init), module.config.dtype)


def product(equation: str, x, y, dtype: Any, out: Any = None) -> jax.Array:
    """jnp.einsum(equation, x, y cast to `dtype`), returned in `out` or else in `dtype`.

    In bfloat16 and float16 the sums are taken in float32, in the backward pass too. A bfloat16 sum
    is less exact everywhere, and half as fast on CPUs with such instructions. The gradient of a
    float32 parameter y is not rounded to `dtype`. An x that is wider than `dtype` is not cast.
    """
    dtype = jnp.dtype(dtype)
    if dtype.itemsize >= 4 or x.dtype != dtype:
        return jnp.einsum(equation, x, y.astype(dtype), preferred_element_type=out)
    if "..." in equation:  # only x has these
        equation = equation.replace("...", "ABCDEF"[: x.ndim - equation.index(",") + 3])
    return _product(equation, dtype, jnp.dtype(out or dtype), x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(equation, dtype, out, x, y):
    return _einsum(equation, x, y.astype(dtype)).astype(out)


def _product_fwd(equation, dtype, out, x, y):
    return _product(equation, dtype, out, x, y), (x, y)


def _product_bwd(equation, dtype, out, kept, cotangent):
    x, y = kept
    inputs, result = equation.split("->")
    of_x, of_y = inputs.split(",")
    cotangent = cotangent.astype(dtype)
    dx = _einsum(f"{result},{of_y}->{of_x}", cotangent, y.astype(dtype))
    dy = _einsum(f"{of_x},{result}->{of_y}", x, cotangent)
    return dx.astype(x.dtype), dy.astype(y.dtype)


_product.defvjp(_product_fwd, _product_bwd)

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
