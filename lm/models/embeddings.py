"""Token, type and position embeddings."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models import shards, tied
from lm.models.config import ModelConfig
from lm.models.layers import Norm, constrain, in_dtype, rows, stored
from lm.models.matmul import product
from lm.models.positions import sinusoids


def table_rows(name: str, table: jax.Array, index_BT: jax.Array) -> jax.Array:
    """Look up rows of a table, [B, T, D]. `name` is the logical name of its first dimension.

    The table is first gathered along `embed`: a lookup in a table sharded on both axes replicates
    its result.
    """
    return rows(constrain(table, f"{name} embed"), index_BT)


token_rows, position_rows, type_rows = (
    functools.partial(table_rows, name) for name in ("vocab", "positions", "types")
)


def looked_up(dtype, table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """`token_rows` in `dtype`; on each device in its own copy, if the table has some."""
    batch, length = shards.batch_axes(tokens_BT.shape)
    axes, found = (*batch, *length), tied.copies(table_VD)
    if found is None or found.axes != axes:
        return in_dtype(token_rows, dtype, table_VD, tokens_BT)
    split = shards.spec(batch, length)
    of_device = lambda copies, tokens: token_rows(copies[0], tokens)
    of_devices = shards.mapped(of_device, (shards.of_each(axes), split), split, axes)
    return in_dtype(of_devices, dtype, found.of_devices, tokens_BT)


class Embeddings(nn.Module):
    """Token, type and position embeddings of token ids.

    Tied models also use the token table as their output layer (Press & Wolf 2017). With `own_table`
    False the caller passes the stored token table: an encoder uses its decoder's.
    """

    config: ModelConfig
    own_table: bool = True

    def setup(self):
        c = self.config
        width = c.embedding_width or c.d_model
        if self.own_table:
            self.token = stored(self, "token", (c.vocab_size, width), "vocab table_embed")
        if c.positions == "learned":
            self.position = stored(
                self, "position", (c.position_offset + c.max_length, width), "positions table_embed"
            )
        if c.type_vocab_size:
            self.type = stored(self, "type", (c.type_vocab_size, width), "types table_embed")
        if c.embedding_norm:
            self.norm = Norm(c)
        if c.embedding_width:
            self.projection = stored(self, "projection", (width, c.d_model), "narrow_embed embed")
            self.projection_bias = stored(
                self, "projection_bias", (c.d_model,), "norm", nn.initializers.zeros
            )

    def __call__(self, tokens_BT, positions_BT, types_BT=None, table_VD=None) -> jax.Array:
        c = self.config
        x = looked_up(c.dtype, self.token if table_VD is None else table_VD, tokens_BT)
        if c.scale_embeddings:
            x = x * jnp.asarray(c.d_model**0.5, x.dtype)
        if c.positions == "learned":
            x = x + in_dtype(
                position_rows,
                c.dtype,
                self.position,
                positions_BT + c.position_offset if c.position_offset else positions_BT,
            )
        if c.positions == "sinusoidal":
            x = x + sinusoids(c, positions_BT).astype(x.dtype)
        if c.type_vocab_size:
            x = x + in_dtype(
                type_rows,
                c.dtype,
                self.type,
                jnp.zeros_like(tokens_BT) if types_BT is None else types_BT,
            )
        if c.embedding_norm:
            x = self.norm(x)
        if c.embedding_width:
            x = in_dtype(
                jnp.add,
                c.dtype,
                self.projection_bias,
                product("bte,ed->btd", x, self.projection, c.dtype),
            )
        return constrain(x, "batch residual_length residual")
