"""Matrix products accumulated in float32, whatever the compute dtype."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.layers import stored

# Of the name of a matrix: the scales of its int8 values (lm.models.quantised), and the matrix with
# its outputs first (lm.models.decoding).
SCALE, BY_OUTPUT = "_scale", "_by_output"


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
    dtype = module.config.dtype
    if not module.has_variable("params", name + BY_OUTPUT):
        y = stored(module, name, shape, axes, init)
        return weighted(module, equation, x, y, name, dtype)
    y, summed = module.get_variable("params", name + BY_OUTPUT), _summed(equation)
    tokens, outputs = x.shape[: x.ndim - summed], y.shape[: y.ndim - summed]
    # of two dimensions each: XLA would rearrange others
    x, y = (z.reshape(-1, math.prod(z.shape[z.ndim - summed :])) for z in (x, y))
    return weighted(module, "ti,oi->to", x, y, name, dtype).reshape(*tokens, *outputs)


def weighted(
    module: nn.Module, equation: str, x, y, name: str, dtype: Any, out: Any = None
) -> jax.Array:
    """`product` with the parameter `name` of a module, y; int8 values have their scales beside.

    On a CPU, where converting the weights would take longer than reading float ones, an x that is
    narrower than float32 is rounded to int8 too, with a scale for every token.
    """
    if y.dtype != jnp.int8:
        return product(equation, x, y, dtype, out)
    scale = module.get_variable("params", name + SCALE)
    if jax.default_backend() == "cpu" and x.dtype.itemsize < 4:
        sums = _rounded(_spelled(equation, x), x, y)
    else:
        sums = product(equation, x, y, dtype, jnp.float32)
    return (sums * (scale.reshape(-1) if y.ndim == 2 else scale)).astype(out or dtype)


def _rounded(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Product of x, rounded to int8 by token, and int8 y, float32 (Dettmers et al. 2022, 2.1)."""
    axes = tuple(range(-_summed(equation), 0))
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=axes, keepdims=True)
    step = jnp.where(largest > 0, largest, 1.0) / jnp.iinfo(jnp.int8).max
    sums = _sums(equation, jnp.round(wide / step).astype(jnp.int8), y, jnp.int32)
    tokens = x.shape[: x.ndim - len(axes)]
    return sums * step.reshape(*tokens, *[1] * (sums.ndim - len(tokens)))


def product(equation: str, x, y, dtype: Any, out: Any = None) -> jax.Array:
    """jnp.einsum(equation, x, y cast to `dtype`), returned in `out` or else in `dtype`.

    In bfloat16 and float16 the sums are taken in float32, in the backward pass too. A bfloat16 sum
    is less exact everywhere, and half as fast on CPUs with such instructions. The gradient of a
    float32 parameter y is not rounded to `dtype`. An x that is wider than `dtype` is not cast.
    """
    dtype = jnp.dtype(dtype)
    if dtype.itemsize >= 4 or x.dtype != dtype:
        return jnp.einsum(equation, x, y.astype(dtype), preferred_element_type=out)
    return _product(_spelled(equation, x), dtype, jnp.dtype(out or dtype), x, y)


def _spelled(equation: str, x: jax.Array) -> str:
    """The equation with a letter for every dimension of "...", which only x has."""
    return equation.replace("...", "ABCDEF"[: x.ndim - equation.index(",") + 3])


def _summed(equation: str) -> int:
    """How many dimensions of x, its last ones, are summed over."""
    inputs, result = equation.split("->")
    return sum(letter not in result for letter in inputs.split(",")[0])


def _sums(equation: str, x, y, accumulated: Any, out: Any = None) -> jax.Array:
    """jnp.einsum accumulated in a wider type, and returned in it or in `out`.

    On a CPU, a single row is computed twice: XLA has fast products of narrow types from two rows
    on, and takes two to four times as long for one.
    """
    of_x, of_y = equation.split("->")[0].split(",")
    rows = x.shape[: x.ndim - _summed(equation)]
    twice = jax.default_backend() == "cpu" and rows and math.prod(rows) == 1 and of_x[0] not in of_y
    x = jnp.concatenate([x, x]) if twice else x
    sums = _einsum(equation, x, y, accumulated, out or accumulated)
    return sums[:1] if twice else sums


def _einsum(equation: str, x: jax.Array, y: jax.Array, accumulated: Any, out: Any) -> jax.Array:
    """jnp.einsum accumulated in a wider type, returned in `out`.

    A result whose dimensions must be put in another order is cast before. XLA for CPUs would else
    exchange x and y, and jaxlib 0.10.2 refuses to run some of those products in bfloat16.
    """
    inputs, result = equation.split("->")
    of_x, of_y = inputs.split(",")
    shared = [letter for letter in of_x if letter in of_y]
    batch = [letter for letter in shared if letter in result]
    own = [[letter for letter in each if letter not in shared] for each in (of_x, of_y)]
    orders = ["".join([*batch, *own[i], *own[1 - i]]) for i in (0, 1)]
    order = result if result in orders else orders[0]
    found = jnp.einsum(f"{inputs}->{order}", x, y, preferred_element_type=accumulated)
    return jnp.transpose(found.astype(out), [order.index(letter) for letter in result])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(equation, dtype, out, x, y):
    return _sums(equation, x, y.astype(dtype), jnp.float32, out)


def _product_fwd(equation, dtype, out, x, y):
    return _product(equation, dtype, out, x, y), (x, y)


def _product_bwd(equation, dtype, out, kept, cotangent):
    x, y = kept
    inputs, result = equation.split("->")
    of_x, of_y = inputs.split(",")
    cotangent = cotangent.astype(dtype)
    sums = functools.partial(_einsum, accumulated=jnp.float32)
    dx = sums(f"{result},{of_y}->{of_x}", cotangent, y.astype(dtype), out=x.dtype)
    dy = sums(f"{of_x},{result}->{of_y}", x, cotangent, out=y.dtype)
    return dx, dy


_product.defvjp(_product_fwd, _product_bwd)
