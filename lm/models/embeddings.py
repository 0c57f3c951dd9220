"""Token, type and position embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.config import ModelConfig
from lm.models.layers import Norm, bias, constrain, weight
from lm.models.positions import sinusoids


class Embeddings(nn.Module):
    """Token ids to vectors; the table also serves as the output layer of tied models (Press & Wolf 2017).

    With `own_table` False the token table is given with the call: an encoder's is that of its decoder.
    """

    config: ModelConfig
    own_table: bool = True

    def setup(self):
        c = self.config
        width = c.embedding_width or c.d_model
        if self.own_table:
            self.token = weight(self, "token", (c.vocab_size, width), "vocab table_embed")
        if c.positions == "learned":
            self.position = weight(self, "position", (c.position_offset + c.max_length, width), "positions table_embed")
        if c.type_vocab_size:
            self.type = weight(self, "type", (c.type_vocab_size, width), "types table_embed")
        if c.embedding_norm:
            self.norm = Norm(c)
        if c.embedding_width:
            self.projection = weight(self, "projection", (width, c.d_model), "narrow_embed embed")
            self.projection_bias = bias(self, "projection_bias", (c.d_model,), "norm")

    def __call__(self, tokens_BT, positions_BT, types_BT=None, table_VD=None) -> jax.Array:
        c = self.config
        table_VD = self.token if table_VD is None else table_VD
        # The table is gathered whole along `embed` first: a lookup in a table sharded on both axes replicates its result.
        x = constrain(table_VD, "vocab embed").at[tokens_BT].get(mode="clip")
        if c.scale_embeddings:
            x = x * jnp.asarray(c.d_model**0.5, x.dtype)
        if c.positions == "learned":
            x = x + self.position.at[positions_BT + c.position_offset if c.position_offset else positions_BT].get(mode="clip")
        if c.positions == "sinusoidal":
            x = x + sinusoids(c, positions_BT).astype(x.dtype)
        if c.type_vocab_size:
            x = x + self.type.at[jnp.zeros_like(tokens_BT) if types_BT is None else types_BT].get(mode="clip")
        if c.embedding_norm:
            x = self.norm(x)
        if c.embedding_width:
            x = jnp.einsum("bte,ed->btd", x, self.projection) + self.projection_bias
        return constrain(x, "batch length embed")
