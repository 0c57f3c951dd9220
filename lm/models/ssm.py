"""Mamba (S6) and Mamba-2 (SSD) mixers: what a layer may have in place of attention, with a cache of fixed size."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.config import ConfigError, ModelConfig
from lm.models.layers import ACTIVATION_FUNCTIONS, bias, constrain, weight
from lm.models.scan import causal_conv, selective_scan, ssd


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSM:
    """Shape of a Mamba or Mamba-2 mixer, in elements. Raises ConfigError on construction when the sizes do not fit each other."""

    d_inner: int  # width inside the mixer, usually 2 d_model
    d_state: int  # N
    conv_width: int = 4  # tokens that the convolution sees
    dt_rank: int = 0  # Mamba: width between the two projections that make dt
    n_heads: int = 0  # Mamba-2: d_inner = n_heads * head_dim
    head_dim: int = 0
    n_groups: int = 1  # Mamba-2: sets of B and C, each serving as many heads, whose features the gated norm normalises together
    chunk: int = 0  # tokens computed at once; 0 = what suits the kind. Changes no result
    bias: bool = False  # of the projections in and out
    conv_bias: bool = True
    inner_norm_eps: float | None = None  # Mamba: RMS normalisation, without a scale, of dt, B and C (FalconMamba); None = none
    dt_limit: tuple[float, ...] = ()  # Mamba-2: dt is clipped to (lowest, highest)

    def __post_init__(self):
        for name in ("d_inner", "d_state", "conv_width", "n_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.ssm.{name}={getattr(self, name)}: expected a positive integer")
        if bool(self.dt_rank) == bool(self.n_heads):
            raise ConfigError(
                f"model.ssm has dt_rank={self.dt_rank} and n_heads={self.n_heads}: Mamba needs dt_rank > 0, Mamba-2 n_heads > 0, not both"
            )
        if self.n_heads:
            if self.n_heads * self.head_dim != self.d_inner:
                raise ConfigError(
                    f"model.ssm.n_heads={self.n_heads} times head_dim={self.head_dim} is not d_inner={self.d_inner}; make them equal"
                )
            if self.n_heads % self.n_groups:
                raise ConfigError(
                    f"model.ssm.n_heads={self.n_heads} is not a multiple of n_groups={self.n_groups}: "
                    "every group of B and C serves the same number of heads"
                )


def init_ssm_cache(config: ModelConfig, ssm: SSM, batch_size: int) -> dict:
    """An empty cache of one layer: convolution windows in the compute dtype, float32 state, and the document they belong to."""
    window = lambda channels: jnp.zeros((batch_size, ssm.conv_width - 1, channels), config.dtype)
    cache = {"conv": window(ssm.d_inner), "segment": jnp.zeros((batch_size,), jnp.int32)}
    if ssm.n_heads:
        state = (batch_size, ssm.n_heads, ssm.head_dim, ssm.d_state)
        cache["bc_conv"] = window(2 * ssm.n_groups * ssm.d_state)
    else:
        state = (batch_size, ssm.d_state, ssm.d_inner)
    return cache | {"state": jnp.zeros(state, jnp.float32)}


class MambaMixer(nn.Module):
    """Mamba's selective state-space layer (Gu & Dao 2023, section 3.4), with FalconMamba's norms if `ssm` asks for them.

    x_BTD [B, T, D], segments int [B, T] (0 = padding), cache from `init_ssm_cache` or None -> [B, T, D] and the cache after it, or None.
    """

    config: ModelConfig
    ssm: SSM

    @nn.compact
    def __call__(self, x_BTD, segments_BT, cache=None):
        c, s = self.config, self.ssm
        act = ACTIVATION_FUNCTIONS[c.activation]
        past = continued(cache, segments_BT)
        gate = project(self, x_BTD, "gate", s.d_inner, "mlp")
        u, conv = convolve(self, project(self, x_BTD, "input", s.d_inner, "mlp"), "conv", "mlp", segments_BT, past["conv"])
        u = constrain(act(u), "batch length mlp")

        low = jnp.einsum("bte,er->btr", u, weight(self, "dt_down", (s.d_inner, s.dt_rank), "mlp dt"))
        bc = jnp.einsum("bte,en->btn", u, weight(self, "bc", (s.d_inner, 2 * s.d_state), "mlp state"))
        low, B, C = (z if s.inner_norm_eps is None else rms(z, s.inner_norm_eps) for z in (low, *jnp.split(bc, 2, axis=-1)))
        dt = jnp.einsum("btr,re->bte", low, weight(self, "dt_up", (s.dt_rank, s.d_inner), "dt mlp", uniform(s.dt_rank**-0.5)))
        dt = jax.nn.softplus(dt.astype(jnp.float32) + float32(self, "dt_bias", (s.d_inner,), "mlp", init_dt_bias))
        A = -jnp.exp(float32(self, "a_log", (s.d_inner, s.d_state), "mlp state", init_a_log))
        skip = float32(self, "skip", (s.d_inner,), "mlp", nn.initializers.ones)
        y, state = selective_scan(u, dt, A, B, C, skip, segments_BT, past["state"], s.chunk or 32)

        y = constrain(y * act(gate), "batch length mlp")
        return leave(self, y), updated(cache, segments_BT, conv=conv, state=state)


class Mamba2Mixer(nn.Module):
    """Mamba-2's layer (Dao & Gu 2024, section 7): input, B, C and dt in one step, scalar decay per head, gated norm before the way out.

    x_BTD [B, T, D], segments int [B, T] (0 = padding), cache from `init_ssm_cache` or None -> [B, T, D] and the cache after it, or None.
    """

    config: ModelConfig
    ssm: SSM

    @nn.compact
    def __call__(self, x_BTD, segments_BT, cache=None):
        c, s = self.config, self.ssm
        act = ACTIVATION_FUNCTIONS[c.activation]
        past, (batch, length, _) = continued(cache, segments_BT), x_BTD.shape
        gate = project(self, x_BTD, "gate", s.d_inner, "mlp")
        x, conv = convolve(self, project(self, x_BTD, "input", s.d_inner, "mlp"), "conv", "mlp", segments_BT, past["conv"])
        bc = project(self, x_BTD, "bc", 2 * s.n_groups * s.d_state, "state")
        bc, bc_conv = convolve(self, bc, "bc_conv", "state", segments_BT, past["bc_conv"])
        x = constrain(act(x).reshape(batch, length, s.n_heads, s.head_dim), "batch length heads head_dim")
        B, C = (z.reshape(batch, length, s.n_groups, s.d_state) for z in jnp.split(act(bc), 2, axis=-1))

        dt = project(self, x_BTD, "dt_in", s.n_heads, "heads").astype(jnp.float32)
        dt = jax.nn.softplus(dt + float32(self, "dt_bias", (s.n_heads,), "heads", init_dt_bias))
        dt = jnp.clip(dt, *s.dt_limit) if s.dt_limit else dt
        A = -jnp.exp(float32(self, "a_log", (s.n_heads,), "heads", init_a_log))
        skip = float32(self, "skip", (s.n_heads,), "heads", nn.initializers.ones)
        y, state = ssd(x, dt, A, B, C, skip, segments_BT, past["state"], s.chunk or 64)

        y = y.reshape(batch, length, s.d_inner).astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
        y = rms(y.reshape(batch, length, s.n_groups, -1), c.norm_eps).reshape(batch, length, s.d_inner).astype(c.dtype)
        y = constrain(y * weight(self, "norm_scale", (s.d_inner,), "mlp", nn.initializers.ones), "batch length mlp")
        return leave(self, y), updated(cache, segments_BT, conv=conv, bc_conv=bc_conv, state=state)


def continued(cache, segments_BT) -> dict:
    """Windows and state for a row that goes on with the cached document, and zeros for one that begins with another."""
    if cache is None:
        return dict.fromkeys(("conv", "bc_conv", "state"))
    first = segments_BT[:, 0]
    same = (first == cache["segment"]) | (first == 0)  # 0: a document after this padding starts from nothing by itself
    return {name: jnp.where(same.reshape(-1, *(1,) * (x.ndim - 1)), x, 0) for name, x in cache.items() if name != "segment"}


def updated(cache, segments_BT, **new) -> dict | None:
    """The cache after the row, with the document it ends in."""
    if cache is None:
        return None
    length = segments_BT.shape[1]
    last = jnp.max(jnp.where(segments_BT != 0, jnp.arange(length), -1), axis=1)
    ends_in = jnp.take_along_axis(segments_BT, jnp.maximum(last, 0)[:, None], axis=1)[:, 0]
    return {"segment": jnp.where(last < 0, cache["segment"], ends_in), **new}


def project(module, x_BTD, name, width, axis) -> jax.Array:
    """A way into the mixer, [B, T, D] -> [B, T, width]."""
    y = jnp.einsum("btd,de->bte", x_BTD, weight(module, name, (x_BTD.shape[-1], width), f"embed {axis}"))
    return y + bias(module, f"{name}_bias", (width,), axis) if module.ssm.bias else y


def leave(module, y_BTE) -> jax.Array:
    """The way out of the mixer, [B, T, E] -> [B, T, D]."""
    d_model = module.config.d_model
    y = jnp.einsum("bte,ed->btd", y_BTE, weight(module, "out", (y_BTE.shape[-1], d_model), "mlp embed"))
    return y + bias(module, "out_bias", (d_model,), "norm") if module.ssm.bias else y


def convolve(module, x_BTC, name, axis, segments_BT, window) -> tuple[jax.Array, jax.Array]:
    """`causal_conv` with the parameters `name` and, if the mixer has it, `name`_bias."""
    s, channels = module.ssm, x_BTC.shape[-1]
    kernel = weight(module, name, (s.conv_width, channels), f"conv {axis}", uniform(s.conv_width**-0.5))
    y, window = causal_conv(x_BTC, kernel, segments_BT, window)
    return (y + bias(module, f"{name}_bias", (channels,), axis) if s.conv_bias else y), window


def float32(module, name, shape, axes, init) -> jax.Array:
    """A parameter of the recurrence: float32 whatever the compute dtype, as rounded decays compound over the length."""
    stored = module.param(name, nn.with_logical_partitioning(init, tuple(axes.split())), shape, jnp.dtype(module.config.param_dtype))
    return stored.astype(jnp.float32)


def rms(x, eps: float) -> jax.Array:
    """x over its root mean square along the last axis, computed in float32."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)).astype(x.dtype)


def uniform(limit: float):
    """Initialiser: uniform in +- limit."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def init_a_log(key, shape, dtype) -> jax.Array:
    """A = -1, -2, ... along the last axis (S4D-real; Gu & Dao 2023, section 3.6)."""
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape).astype(dtype)


def init_dt_bias(key, shape, dtype) -> jax.Array:
    """Makes softplus(dt_bias) log-uniform in [0.001, 0.1] (Gu & Dao 2023, section 3.6)."""
    dt = jnp.exp(jax.random.uniform(key, shape, jnp.float32, math.log(0.001), math.log(0.1)))
    return (dt + jnp.log(-jnp.expm1(-dt))).astype(dtype)
