"""Mamba (S6) and Mamba-2 (SSD) mixers, which replace attention and have a cache of fixed size."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models import across
from lm.models.config import ModelConfig
from lm.models.layers import ACTIVATION_FUNCTIONS, biased, constrain, scaled, stored, weight, wide
from lm.models.matmul import matmul
from lm.models.scan import selective_scan, ssd


class MambaMixer(nn.Module):
    """Mamba's selective state-space layer (Gu & Dao 2023, section 3.4).

    FalconMamba's norms are applied if the config sets `ssm_inner_norm_eps`. Takes x_BTD [B, T, D],
    segments int [B, T] (0 = padding) and a layer's cache (see `init_cache`) or None. Returns
    [B, T, D] and the updated cache.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, segments_BT, cache=None):
        c = self.config
        act = ACTIVATION_FUNCTIONS[c.activation]
        segments_BT = across.whole(segments_BT)
        past = continued(cache, segments_BT)
        gate = project(self, x_BTD, "gate", c.ssm_inner, "mlp")
        u, conv = convolve(
            self,
            project(self, x_BTD, "input", c.ssm_inner, "mlp"),
            "conv",
            "mlp",
            segments_BT,
            past["conv"],
        )
        u = constrain(act(u), "batch length mlp")

        width, rank = c.ssm_inner, c.ssm_dt_rank
        low = matmul(self, "bte,er->btr", u, "dt_down", (width, rank), "mlp dt")
        bc = matmul(self, "bte,en->btn", u, "bc", (width, 2 * c.ssm_state), "mlp state")
        low, B, C = (
            rms(z, c.ssm_inner_norm_eps) if c.ssm_inner_norm_eps else z
            for z in (low, *jnp.split(bc, 2, axis=-1))
        )
        init = uniform(rank**-0.5)
        dt = matmul(self, "btr,re->bte", low, "dt_up", (rank, width), "dt mlp", init)
        dt = jax.nn.softplus(
            wide(dt) + recurrent(self, "dt_bias", (c.ssm_inner,), "mlp", init_dt_bias)
        )
        A = -jnp.exp(recurrent(self, "a_log", (c.ssm_inner, c.ssm_state), "mlp state", init_a_log))
        skip = recurrent(self, "skip", (c.ssm_inner,), "mlp", nn.initializers.ones)
        y, state = selective_scan(
            u, dt, A, B, C, skip, segments_BT, past["state"], c.ssm_chunk or 32, across.s6
        )

        y = constrain(y * jax.nn.silu(gate), "batch length mlp")
        return leave(self, y), updated(cache, segments_BT, conv=conv, state=state)


class Mamba2Mixer(nn.Module):
    """Mamba-2's layer (Dao & Gu 2024, section 7).

    Input, B, C and dt are projected in parallel; the decay is a scalar per head; a gated norm
    precedes the output projection. Takes x_BTD [B, T, D], segments int [B, T] (0 = padding) and a
    layer's cache (see `init_cache`) or None. Returns [B, T, D] and the updated cache.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, segments_BT, cache=None):
        c = self.config
        act = ACTIVATION_FUNCTIONS[c.activation]
        segments_BT = across.whole(segments_BT)
        past, (batch, length, _) = continued(cache, segments_BT), x_BTD.shape
        gate = project(self, x_BTD, "gate", c.ssm_inner, "mlp")
        x, conv = convolve(
            self,
            project(self, x_BTD, "input", c.ssm_inner, "mlp"),
            "conv",
            "mlp",
            segments_BT,
            past["conv"],
        )
        bc = project(self, x_BTD, "bc", 2 * c.ssm_groups * c.ssm_state, "state")
        bc, bc_conv = convolve(self, bc, "bc_conv", "state", segments_BT, past["bc_conv"])
        x = constrain(
            act(x).reshape(batch, length, c.ssm_heads, c.ssm_head_dim),
            "batch length heads head_dim",
        )
        B, C = (
            z.reshape(batch, length, c.ssm_groups, c.ssm_state)
            for z in jnp.split(act(bc), 2, axis=-1)
        )

        dt = wide(project(self, x_BTD, "dt_in", c.ssm_heads, "heads"))
        dt = jax.nn.softplus(dt + recurrent(self, "dt_bias", (c.ssm_heads,), "heads", init_dt_bias))
        dt = jnp.clip(dt, *c.ssm_dt_limit) if c.ssm_dt_limit else dt
        A = -jnp.exp(recurrent(self, "a_log", (c.ssm_heads,), "heads", init_a_log))
        skip = recurrent(self, "skip", (c.ssm_heads,), "heads", nn.initializers.ones)
        y, state = ssd(
            x, dt, A, B, C, skip, segments_BT, past["state"], c.ssm_chunk or 64, across.ssd_scan
        )

        y = wide(y.reshape(batch, length, c.ssm_inner)) * jax.nn.silu(wide(gate))
        y = (
            rms(y.reshape(batch, length, c.ssm_groups, -1), c.norm_eps)
            .reshape(batch, length, c.ssm_inner)
            .astype(c.dtype)
        )
        y = constrain(scaled(self, y, "norm_scale", "mlp"), "batch length mlp")
        return leave(self, y), updated(cache, segments_BT, conv=conv, bc_conv=bc_conv, state=state)


def continued(cache, segments_BT) -> dict:
    """Return the cached windows and state, zeroed in rows that begin with another document."""
    if cache is None:
        return dict.fromkeys(("conv", "bc_conv", "state"))
    first = segments_BT[:, 0]
    # 0: the row begins with padding, and a document after it starts from zeros anyway
    same = (first == cache["segment"]) | (first == 0)
    return {
        name: jnp.where(same.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)
        for name, x in cache.items()
        if name != "segment"
    }


def updated(cache, segments_BT, **new) -> dict | None:
    """Return the cache after the row, with the id of the document it ends in."""
    if cache is None:
        return None
    length = segments_BT.shape[1]
    last = jnp.max(jnp.where(segments_BT != 0, jnp.arange(length), -1), axis=1)
    ends_in = jnp.take_along_axis(segments_BT, jnp.maximum(last, 0)[:, None], axis=1)[:, 0]
    return {"segment": jnp.where(last < 0, cache["segment"], ends_in), **new}


def project(module, x_BTD, name, width, axis) -> jax.Array:
    """Project into the mixer, [B, T, D] -> [B, T, width]."""
    shape = (x_BTD.shape[-1], width)
    y = matmul(module, "btd,de->bte", x_BTD, name, shape, f"embed {axis}")
    return biased(module, y, f"{name}_bias", axis) if module.config.ssm_bias else y


def leave(module, y_BTE) -> jax.Array:
    """Project out of the mixer, [B, T, E] -> [B, T, D]."""
    shape = (y_BTE.shape[-1], module.config.d_model)
    y = matmul(module, "bte,ed->btd", y_BTE, "out", shape, "mlp embed")
    return biased(module, y, "out_bias", "norm") if module.config.ssm_bias else y


def convolve(module, x_BTC, name, axis, segments_BT, window) -> tuple[jax.Array, jax.Array]:
    """Apply `causal_conv` with parameter `name` and, with `ssm_conv_bias`, `name`_bias."""
    c, channels = module.config, x_BTC.shape[-1]
    kernel = weight(module, name, (c.ssm_conv, channels), f"conv {axis}", uniform(c.ssm_conv**-0.5))
    y, window = across.causal_conv(x_BTC, kernel, segments_BT, window, axis)
    return (biased(module, y, f"{name}_bias", axis) if c.ssm_conv_bias else y), window


def recurrent(module, name, shape, axes, init) -> jax.Array:
    """Declare a parameter of the recurrence, in float32 whatever the compute dtype.

    Rounding errors of decays would compound over the length.
    """
    return wide(stored(module, name, shape, axes, init))


def rms(x, eps: float) -> jax.Array:
    """Divide x by its root mean square along the last axis, computed in float32."""
    x32 = wide(x)
    return (x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)).astype(
        x.dtype
    )


def uniform(limit: float):
    """Initialiser: uniform in [-limit, limit]."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def init_a_log(key, shape, dtype) -> jax.Array:
    """Initialiser of log(-A) with A = -1, -2, ... along the last axis.

    S4D-real (Gu & Dao 2023, section 3.6).
    """
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape).astype(
        dtype
    )


def init_dt_bias(key, shape, dtype) -> jax.Array:
    """Initialiser that makes softplus(dt_bias) log-uniform in [0.001, 0.1].

    See Gu & Dao 2023, section 3.6.
    """
    dt = jnp.exp(jax.random.uniform(key, shape, jnp.float32, math.log(0.001), math.log(0.1)))
    return (dt + jnp.log(-jnp.expm1(-dt))).astype(dtype)
