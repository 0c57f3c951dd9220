"""Token, type and learned-position embeddings, and the output table that may share the first of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.config import ModelConfig
from lm.models.layers import ACTIVATION_FUNCTIONS, Norm, bias, constrain, weight


class Embeddings(nn.Module):
    """Token ids to vectors; the table also serves as the output layer of tied models (Press & Wolf 2017)."""

    config: ModelConfig

    def setup(self):
        c = self.config
        width = c.embedding_width or c.d_model
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

    def __call__(self, tokens_BT, positions_BT, types_BT=None) -> jax.Array:
        c = self.config
        # The table is gathered whole along `embed` first: a lookup in a table sharded on both axes replicates its result.
        x = constrain(self.token, "vocab embed").at[tokens_BT].get(mode="clip")
        if c.scale_embeddings:
            x = x * jnp.asarray(c.d_model**0.5, x.dtype)
        if c.positions == "learned":
            x = x + self.position.at[positions_BT + c.position_offset if c.position_offset else positions_BT].get(mode="clip")
        if c.type_vocab_size:
            x = x + self.type.at[jnp.zeros_like(tokens_BT) if types_BT is None else types_BT].get(mode="clip")
        if c.embedding_norm:
            x = self.norm(x)
        if c.embedding_width:
            x = jnp.einsum("bte,ed->btd", x, self.projection) + self.projection_bias
        return constrain(x, "batch length embed")


class Head(nn.Module):
    """Hidden states to vocabulary logits: a table alone (GPT), or BERT's transform before it (Devlin et al. 2019, A.1)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, table_VD: jax.Array | None) -> jax.Array:
        """x [..., D] -> float32 logits [..., V]; `table_VD` is the tied table, or None for one of its own."""
        c = self.config
        width = c.embedding_width or c.d_model
        if c.head == "masked_lm":
            x = jnp.einsum("...d,de->...e", x, weight(self, "dense", (c.d_model, width), "embed pooled"))
            x = x + bias(self, "dense_bias", (width,), "norm") if c.mlp_bias else x
            x = Norm(c, name="norm")(ACTIVATION_FUNCTIONS[c.head_activation or c.activation](x))
        if table_VD is None:
            table_VD = weight(self, "table", (c.vocab_size, width), "vocab table_embed")
        logits = jnp.einsum("...d,vd->...v", x, constrain(table_VD, "vocab embed"), preferred_element_type=jnp.float32)
        if c.head == "masked_lm":
            logits = logits + bias(self, "bias", (c.vocab_size,), "vocab")
        return c.logit_softcap * jnp.tanh(logits / c.logit_softcap) if c.logit_softcap else logits
