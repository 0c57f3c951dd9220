"""One layer: norm, attention, norm, mlp, with the norms before the mixers or after the residual sums."""

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
    """One layer, in the shape a scan wants: (x [B, T, D], cache, ...) -> (x, cache). Dropout is on when given its rng."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, cache, mask, angles, start):
        c = self.config

        def residual(x, name, mixer):
            norm = Norm(c, name=f"{name}_norm")
            y = nn.Dropout(c.dropout)(mixer(x if c.post_norm else norm(x)), deterministic=not self.has_rng("dropout"))
            x = norm(x + y) if c.post_norm else x + y
            return constrain(x, "batch length embed")

        def attend(x):
            nonlocal cache
            y, cache = Attention(c, name="attention")(x, mask, angles, cache, start)
            return y

        x = residual(x, "attention", attend)
        x = residual(x, "mlp", MLP(c, name="mlp"))
        return x, cache
