"""What every module shares: parameters with logical axis names, activation constraints, norms and activations."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.config import ModelConfig

ACTIVATION_FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: str, init: Callable | None = None) -> jax.Array:
    """A parameter of `module` in the compute dtype; `axes` names each dimension, e.g. "embed heads head_dim".

    Drawn from a normal of `initializer_range` unless `init` is given. This is the one place that knows a parameter's
    shape, its logical axes and its initialiser.
    """
    c: ModelConfig = module.config
    init = nn.initializers.normal(c.initializer_range) if init is None else init
    value = module.param(name, nn.with_logical_partitioning(init, tuple(axes.split())), shape, jnp.dtype(c.param_dtype))
    return jnp.asarray(value, c.dtype)


def bias(module: nn.Module, name: str, shape: tuple[int, ...], axes: str) -> jax.Array:
    """A parameter that starts at zero."""
    return weight(module, name, shape, axes, nn.initializers.zeros)


def constrain(x: jax.Array, axes: str) -> jax.Array:
    """Shards an activation by logical names. Outside a mesh it is the identity; a name without a rule is a ValueError."""
    return nn.with_logical_constraint(x, tuple(axes.split()), fallback=nn.spmd.RulesFallback.RAISE_ERROR)


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x32 = x.astype(jnp.float32)
        if c.norm == "layernorm":
            x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + c.norm_eps)
        if c.norm_plus_one:
            y = (x32 * (1.0 + bias(self, "scale", (x.shape[-1],), "norm").astype(jnp.float32))).astype(c.dtype)
        else:
            y = x32.astype(c.dtype) * weight(self, "scale", (x.shape[-1],), "norm", nn.initializers.ones)
        return y + bias(self, "bias", (x.shape[-1],), "norm") if c.norm == "layernorm" and c.norm_bias else y
