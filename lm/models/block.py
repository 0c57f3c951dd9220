"""One layer: attention and mlp, one after the other or side by side, with norms before, after or around them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.attention import Attention
from lm.models.config import ModelConfig
from lm.models.layers import ACTIVATION_FUNCTIONS, Norm, bias, constrain, weight


class MLP(nn.Module):
    """Two matmuls with an activation, or its gated form act(x G) * (x U) (Shazeer 2020). [B, T, D] -> [B, T, D]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        c = self.config
        act = ACTIVATION_FUNCTIONS[c.activation]
        up = self.project(x_BTD, "up")
        h = act(self.project(x_BTD, "gate")) * up if c.gated_mlp else act(up)
        y = jnp.einsum("btf,fd->btd", constrain(h, "batch length mlp"), weight(self, "down", (c.d_ff, c.d_model), "mlp embed"))
        return y + bias(self, "down_bias", (c.d_model,), "norm") if c.mlp_bias else y

    def project(self, x_BTD, name) -> jax.Array:
        c = self.config
        y = jnp.einsum("btd,df->btf", x_BTD, weight(self, name, (c.d_model, c.d_ff), "embed mlp"))
        return y + bias(self, f"{name}_bias", (c.d_ff,), "mlp") if c.mlp_bias else y


class Block(nn.Module):
    """One layer, in the shape a scan wants: (x [B, T, D], cache, ...) -> (x, cache). Dropout is on when given its rng.

    layer: what is this layer's own, by name: `view`, which entry of the stacked `views` (mask and angles) it takes, absent when
    there is only one; `first`, whether it is the first layer, present only when that matters.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x, cache, layer, views, start):
        c = self.config
        mask, angles = jax.tree.map(lambda view: view[layer["view"]], views) if "view" in layer else views

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
            return x, nn.Dropout(c.dropout)(y, deterministic=not self.has_rng("dropout")), norm

        def residual(x, name, mixer):
            x, y, norm = mixed(x, name, mixer)
            return constrain(norm(x + y) if c.norm_placement == "post" else x + y, "batch length embed")

        def attend(x):
            nonlocal cache
            y, cache = Attention(c, name="attention")(x, mask, angles, cache, start)
            return y

        mlp = MLP(c, name="mlp")
        if c.parallel_residual:
            return constrain(x + mixed(x, "attention", attend)[1] + mixed(x, "mlp", mlp)[1], "batch length embed"), cache
        x = residual(x, "attention", attend)
        return residual(x, "mlp", mlp), cache
