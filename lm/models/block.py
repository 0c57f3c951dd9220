"""One layer of the stack: a mixer, optional cross-attentions and an MLP, with norms.

The mixer is self-attention or a state-space model.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.models import shards
from lm.models.attention import Attention, Bias, CrossAttention, Mask, NeighbourAttention, View
from lm.models.config import ModelConfig
from lm.models.layers import ACTIVATION_FUNCTIONS, GATED_FUNCTIONS, Norm, biased, constrain
from lm.models.matmul import matmul
from lm.models.ssm import Mamba2Mixer, MambaMixer


@flax.struct.dataclass
class Context:
    """Inputs that all layers of a stack share."""

    segments: jax.Array  # int32 [B, T]
    # None without attention; stacked on axis 0 where layers differ in kind
    view: View | None
    bias: Bias | jax.Array | None = None  # relative position bias that all layers share
    start: jax.Array | int = 0  # index of the first token in the cache
    # the encoder's output [B, S, D]; None when its keys and values are in the cache
    encoded: jax.Array | None = None
    encoder_mask: Mask | None = None
    # [B, C, S, N]
    neighbours: jax.Array | None = None
    # int32 [B, C, S]: the segment that each neighbour token was retrieved for
    neighbour_segments: jax.Array | None = None
    neighbour_start: jax.Array | int = 0  # of the batch in its rows, see NeighbourAttention


class MLP(nn.Module):
    """Two matmuls with an activation between them, [B, T, D] -> [B, T, D].

    The gated form computes act(x G) * (x U) (Shazeer 2020).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        up = self.project(x_BTD, "up")
        h = (
            GATED_FUNCTIONS[c.activation](self.project(x_BTD, "gate"), up)
            if c.gated_mlp
            else ACTIVATION_FUNCTIONS[c.activation](up)
        )
        h = constrain(h, "batch length mlp")
        y = matmul(self, "btf,fd->btd", h, "down", (c.d_ff, c.d_model), "mlp embed")
        return biased(self, y, "down_bias", "norm") if c.mlp_bias else y

    def project(self, x_BTD, name) -> jax.Array:
        c = self.config
        y = matmul(self, "btd,df->btf", x_BTD, name, (c.d_model, c.d_ff), "embed mlp")
        return biased(self, y, f"{name}_bias", "mlp") if c.mlp_bias else y


class Block(nn.Module):
    """One layer with the signature of a scan body: (x, cache, layer, Context) -> (x, cache).

    x is [B, T, D]. Dropout is active when a "dropout" rng is given.

    layer: this layer's own settings. `view` is its index into the stacked views, absent when there
    is only one view. `first` tells whether it is the first layer, and is present only when that
    matters. ssm: use a state-space mixer instead of attention. neighbours: attend to retrieved
    neighbours.
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
            """Return the residual stream, the mixer's output and the norm."""
            norm = Norm(c, name=f"{name}_norm")
            h = norm(x) if c.norm_placement in ("pre", "sandwich") else x
            if "first" in layer and name == "attention":
                x = jnp.where(layer["first"], h, x)
            if name == "mlp":  # kept only where an `apply` makes the collection mutable
                self.sow("taps", "ffn_input", h, reduce_fn=lambda _, new: new, init_fn=lambda: None)
            y = mixer(h)
            if c.norm_placement == "sandwich":
                y = Norm(c, name=f"{name}_out_norm")(y)
            if c.norm_placement == "output":
                y = norm(y)
            return x, self.dropped(y), norm

        def residual(x, name, mixer):
            x, y, norm = mixed(x, name, mixer)
            return constrain(
                norm(x + y) if c.norm_placement == "post" else x + y,
                "batch residual_length residual",
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
                x + mixed(x, kind, mixer)[1] + mixed(x, "mlp", mlp)[1],
                "batch residual_length residual",
            ), cache
        x = residual(x, kind, mixer)
        if c.encoder_layers:
            x = residual(
                x,
                "cross",
                caching(CrossAttention(c, name="cross"), context.encoded, context.encoder_mask),
            )
        # Always pre-norm, whatever norm_placement: without neighbours, x is unchanged.
        if self.neighbours and context.neighbours is not None:
            door = NeighbourAttention(c, name="neighbours")
            h = Norm(c, name="neighbours_norm")(x)
            x = x + self.dropped(
                door(
                    h,
                    context.neighbours,
                    context.neighbour_segments,
                    context.segments,
                    context.neighbour_start,
                )
            )
        return residual(x, "mlp", mlp) if mlp else x, cache

    def dropped(self, y) -> jax.Array:
        """Dropout [B, T, D] (Srivastava et al. 2014) whose draws are the same on any mesh."""
        rate = self.config.dropout
        if not rate or not self.has_rng("dropout"):
            return y
        draw = lambda key: jax.random.bernoulli(key, 1 - rate, y.shape[1:])
        kept = jax.vmap(draw)(shards.row_keys(self.make_rng("dropout"), len(y)))
        return jnp.where(kept, y / (1 - rate), jnp.zeros_like(y))
