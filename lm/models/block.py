"""One layer: attention or a state space, attention to an encoder and to neighbours, an mlp; with norms before, after or around them."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.models.attention import Attention, CrossAttention, NeighbourAttention, View
from lm.models.config import ModelConfig
from lm.models.layers import ACTIVATION_FUNCTIONS, Norm, biased, constrain, weight
from lm.models.ssm import Mamba2Mixer, MambaMixer


@flax.struct.dataclass
class Context:
    """What all layers of a stack are given alike."""

    segments: jax.Array  # int32 [B, T]
    view: (
        View | None
    )  # of the layers' attention; stacked on axis 0 where layers differ in kind; None without attention
    bias: jax.Array | None = None  # relative positions' part of the scores, [1, H, T, S]
    start: jax.Array | int = 0  # index of the first token in the cache
    encoded: jax.Array | None = (
        None  # the encoder's output [B, S, D], or None when its keys and values are in the cache
    )
    encoder_mask: jax.Array | None = None  # bool [B, 1, T, S]
    neighbours: jax.Array | None = (
        None  # [B, C, S, N], and the segments they are for, int32 [B, C, S]
    )
    neighbour_segments: jax.Array | None = None


class MLP(nn.Module):
    """Two matmuls with an activation, or its gated form act(x G) * (x U) (Shazeer 2020). [B, T, D] -> [B, T, D]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        act = ACTIVATION_FUNCTIONS[c.activation]
        up = self.project(x_BTD, "up")
        h = act(self.project(x_BTD, "gate")) * up if c.gated_mlp else act(up)
        y = jnp.einsum(
            "btf,fd->btd",
            constrain(h, "batch length mlp"),
            weight(self, "down", (c.d_ff, c.d_model), "mlp embed"),
        )
        return biased(self, y, "down_bias", "norm") if c.mlp_bias else y

    def project(self, x_BTD, name) -> jax.Array:
        c = self.config
        y = jnp.einsum("btd,df->btf", x_BTD, weight(self, name, (c.d_model, c.d_ff), "embed mlp"))
        return biased(self, y, f"{name}_bias", "mlp") if c.mlp_bias else y


class Block(nn.Module):
    """One layer, in the shape a scan wants: (x [B, T, D], cache, layer, Context) -> (x, cache). Dropout is on when given its rng.

    layer: what is this layer's own, by name: `view`, which entry of the stacked views it takes, absent when there is only one;
    `first`, whether it is the first layer, present only when that matters. ssm: a state-space mixer instead of attention.
    """

    config: ModelConfig
    ssm: bool = False
    neighbours: bool = False

    @nn.compact
    def __call__(self, x, cache, layer, context: Context):
        c = self.config
        view = (
            jax.tree.map(lambda v: v[layer["view"]], context.view)
            if "view" in layer
            else context.view
        )

        def mixed(x, name, mixer):
            """The residual stream, what a mixer adds to it, and the norm that is left for the sum, if any."""
            norm = Norm(c, name=f"{name}_norm")
            h = norm(x) if c.norm_placement in ("pre", "sandwich") else x
            if "first" in layer and name == "attention":
                x = jnp.where(layer["first"], h, x)
            y = mixer(h)
            if c.norm_placement == "sandwich":
                y = Norm(c, name=f"{name}_out_norm")(y)
            if c.norm_placement == "output":
                y = norm(y)
            return x, self.dropped(y), norm

        def residual(x, name, mixer):
            x, y, norm = mixed(x, name, mixer)
            return constrain(
                norm(x + y) if c.norm_placement == "post" else x + y, "batch length embed"
            )

        def caching(mixer, *args):
            def run(x):
                nonlocal cache
                y, cache = mixer(x, *args, cache)
                return y

            return run

        mlp = MLP(c, name="mlp") if c.d_ff else None
        if self.ssm:
            kind, mixer = (
                "ssm",
                caching(
                    (Mamba2Mixer if c.ssm_heads else MambaMixer)(c, name="ssm"), context.segments
                ),
            )
        else:
            kind, mixer = (
                "attention",
                caching(Attention(c, name="attention"), view, context.bias, context.start),
            )
        if c.parallel_residual:
            return constrain(
                x + mixed(x, kind, mixer)[1] + mixed(x, "mlp", mlp)[1], "batch length embed"
            ), cache
        x = residual(x, kind, mixer)
        if c.encoder_layers:
            x = residual(
                x,
                "cross",
                caching(CrossAttention(c, name="cross"), context.encoded, context.encoder_mask),
            )
        if (
            self.neighbours and context.neighbours is not None
        ):  # always before a norm: without neighbours, x stays what it is
            door = NeighbourAttention(c, name="neighbours")
            h = Norm(c, name="neighbours_norm")(x)
            x = x + self.dropped(
                door(
                    h,
                    context.neighbours,
                    context.neighbour_segments,
                    context.segments,
                    context.start,
                )
            )
        return residual(x, "mlp", mlp) if mlp else x, cache

    def dropped(self, y) -> jax.Array:
        return nn.Dropout(self.config.dropout)(y, deterministic=not self.has_rng("dropout"))
