"""Shared building blocks: parameters with logical axis names, sharding constraints, norms."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Generator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.config import ModelConfig
from lm.models.shards import mesh_axes

_CHECK: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("check", default=None)


def recomputed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Function of the same values and gradients whose backward pass keeps only the arguments.

    For elementwise functions: it computes again what lies between, instead of storing it.
    """
    kept = jax.custom_vjp(function)
    kept.defvjp(lambda *xs: (function(*xs), xs), lambda xs, g: jax.vjp(function, *xs)[1](g))
    return kept


def _gated(act: Callable, gate: jax.Array, up: jax.Array) -> jax.Array:
    return act(gate) * up


_ELEMENTWISE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
ACTIVATION_FUNCTIONS = {name: recomputed(act) for name, act in _ELEMENTWISE.items()}
# act(gate) * up, for MLPs with a gate
GATED_FUNCTIONS = {
    name: recomputed(functools.partial(_gated, act)) for name, act in _ELEMENTWISE.items()
}


def stored(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: str, init: Callable | None = None
) -> jax.Array:
    """Declare a parameter of `module` in its stored dtype.

    `axes` names each dimension, e.g. "embed heads head_dim". The default initialiser is a normal
    with standard deviation `initializer_range`. This is the only place that knows a parameter's
    shape, logical axes and initialiser.
    """
    c: ModelConfig = module.config
    init = nn.initializers.normal(c.initializer_range) if init is None else init
    return jnp.asarray(
        module.param(
            name,
            nn.with_logical_partitioning(init, tuple(axes.split())),
            shape,
            jnp.dtype(c.param_dtype),
        )
    )


def weight(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: str, init: Callable | None = None
) -> jax.Array:
    """Declare a parameter in the compute dtype, for a matmul.

    Other parameters go through `in_dtype`, because their gradient is a sum over tokens.
    """
    return jnp.asarray(stored(module, name, shape, axes, init), module.config.dtype)


def biased(module: nn.Module, x: jax.Array, name: str, axes: str) -> jax.Array:
    """Add a parameter that starts at zero to the last dimensions of x, in the dtype of x.

    `axes` names those dimensions.
    """
    return _for_every_token(jnp.add, module, x, name, axes, nn.initializers.zeros)


def scaled(module: nn.Module, x: jax.Array, name: str, axes: str) -> jax.Array:
    """Multiply the last dimensions of x by a parameter that starts at one, in the dtype of x.

    `axes` names those dimensions.
    """
    return _for_every_token(jnp.multiply, module, x, name, axes, nn.initializers.ones)


def _for_every_token(
    op: Callable, module: nn.Module, x: jax.Array, name: str, axes: str, init: Callable
) -> jax.Array:
    return in_dtype(op, x.dtype, stored(module, name, x.shape[-len(axes.split()) :], axes, init), x)


def rows(table_VD: jax.Array, index: jax.Array) -> jax.Array:
    """Look up rows of a table, [..., D]; an index past the end reads the last row."""
    return table_VD.at[index].get(mode="clip")


def in_dtype(op: Callable, dtype: Any, parameter: jax.Array, x: jax.Array) -> jax.Array:
    """Compute op(parameter, x) in `dtype`, with the parameter's gradient summed in float32.

    For a parameter that every token uses: its gradient is a sum over tokens. In bfloat16 such a sum
    stops growing at 256 times the size of its terms, and frequent tokens would lose most of their
    gradient.
    """
    dtype = jnp.dtype(dtype)
    return (
        op(parameter.astype(dtype), x)
        if dtype.itemsize >= 4
        else _in_dtype(op, dtype, parameter, x)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_dtype(op, dtype, parameter, x):
    return op(parameter.astype(dtype), x)


def _in_dtype_fwd(op, dtype, parameter, x):
    return _in_dtype(op, dtype, parameter, x), (parameter, x)


def _in_dtype_bwd(op, dtype, kept, cotangent):
    gradients = jax.vjp(op, *map(wide, kept))[1](wide(cotangent))
    return tuple(
        g.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else None
        for g, x in zip(gradients, kept, strict=True)
    )


_in_dtype.defvjp(_in_dtype_fwd, _in_dtype_bwd)


def wide(x: jax.Array) -> jax.Array:
    """Cast x to float32 if it is a narrower float; else return it unchanged."""
    return (
        x.astype(jnp.promote_types(jnp.float32, x.dtype))
        if jnp.issubdtype(x.dtype, jnp.floating)
        else x
    )


def constrain(x: jax.Array, axes: str) -> jax.Array:
    """Constrain the sharding of an activation by logical axis names.

    Outside a mesh it is the identity. A length that the mesh does not divide, such as that of one
    token in generation, is not split. Raises ValueError for a name without a rule.
    """
    names: tuple[str | None, ...] = tuple(axes.split())
    if check := _CHECK.get():
        check(x.shape, names)
    names = tuple(
        None if name.endswith("length") and not mesh_axes(name, size) else name
        for name, size in zip(names, x.shape, strict=True)
    )
    return nn.with_logical_constraint(x, names, fallback=nn.spmd.RulesFallback.RAISE_ERROR)


@contextlib.contextmanager
def checking(check: Callable[[tuple[int, ...], tuple[str, ...]], None]) -> Generator[None]:
    """Call `check` with the shape and axis names of everything that `constrain` meets."""
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def _normalised(centred: bool, eps: float, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    if centred:
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    return x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis.

    Computed in float32.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x32 = recomputed(functools.partial(_normalised, c.norm == "layernorm", c.norm_eps))(x)
        if c.norm_plus_one:
            y = (
                x32
                * (1.0 + wide(stored(self, "scale", (x.shape[-1],), "norm", nn.initializers.zeros)))
            ).astype(c.dtype)
        else:
            y = scaled(self, x32.astype(c.dtype), "scale", "norm")
        return biased(self, y, "bias", "norm") if c.norm == "layernorm" and c.norm_bias else y
