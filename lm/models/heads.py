"""Output heads: token logits, labels, spans, scalars per token and pooled vectors."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.config import LM_HEADS, ModelConfig
from lm.models.layers import ACTIVATION_FUNCTIONS, Norm, biased, constrain, stored
from lm.models.matmul import SCALE, matmul, product, weighted

SCALAR = ("value", "replaced_token_detection")  # heads with one output per token
# outputs of heads without n_labels
OUTPUTS = {"question_answering": 2, **dict.fromkeys(SCALAR, 1)}


class Pooler(nn.Module):
    """BERT's sentence vector, [B, T, D] -> [B, D] (Devlin et al. 2019).

    It is tanh of a dense layer on the first token.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        d = self.config.d_model
        y = matmul(self, "bd,de->be", x_BTD[:, 0], "kernel", (d, d), "embed pooled")
        return jnp.tanh(biased(self, y, "bias", "norm"))


def pool(c: ModelConfig, x_BTD, segments_BT) -> jax.Array:
    """Pool each row to the hidden state of its first or last token, or to the mean, [B, D].

    Only tokens count (segment > 0). A row must hold one document.
    """
    real = segments_BT > 0
    if c.pooling == "mean":
        total = jnp.sum(jnp.where(real[..., None], x_BTD, 0).astype(jnp.float32), axis=1)
        return (total / jnp.maximum(real.sum(axis=1, keepdims=True), 1)).astype(x_BTD.dtype)
    at = (
        jnp.argmax(real, axis=1)
        if c.pooling == "first"
        else real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    )
    return jnp.take_along_axis(x_BTD, at[:, None, None], axis=1)[:, 0]


class Head(nn.Module):
    """Map hidden states to logits over the vocabulary, or to labels.

    A causal or seq2seq head is the output table alone. A masked-LM head has BERT's transform before
    it (Devlin et al. 2019, A.1). A classifier may have a dense layer with an activation
    (`head_dense`) and a norm before its labels.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, table_VD: jax.Array | None = None) -> jax.Array:
        """Map x [..., D] to float32 [..., V], or to float32 [..., labels].

        `table_VD` is the stored tied table; None uses a table of the head's own, and so do int8
        weights.
        """
        c = self.config
        if c.head not in LM_HEADS:
            return self.labels(x)
        width = c.embedding_width or c.d_model
        if c.head == "masked_lm":
            x = Norm(c, name="norm")(self.dense(x, width, c.head_activation or c.activation))
        if table_VD is None or self.has_variable("params", "table" + SCALE):
            table_VD = stored(self, "table", (c.vocab_size, width), "vocab table_embed")
        if c.logit_scale != 1.0:
            x = x * jnp.asarray(c.logit_scale, x.dtype)
        table_VD = constrain(table_VD, "vocab embed")
        logits = weighted(self, "...d,vd->...v", x, table_VD, "table", c.dtype, jnp.float32)
        if c.head == "masked_lm" or c.head_bias:
            logits = biased(self, logits, "bias", "vocab")
        return c.logit_softcap * jnp.tanh(logits / c.logit_softcap) if c.logit_softcap else logits

    def dense(self, x, width: int, activation: str) -> jax.Array:
        x = matmul(self, "...d,de->...e", x, "dense", (x.shape[-1], width), "embed pooled")
        given = self.config.head_dense_bias
        with_bias = self.config.mlp_bias if given is None else given
        x = biased(self, x, "dense_bias", "norm") if with_bias else x
        return ACTIVATION_FUNCTIONS[activation](x)

    def labels(self, x) -> jax.Array:
        c = self.config
        n = c.n_labels or OUTPUTS[c.head]
        x = self.dense(x, c.d_model, c.head_dense) if c.head_dense else x
        x = Norm(c, name="norm")(x) if c.head_norm else x
        # a new critic predicts 0, not noise
        init = nn.initializers.zeros if c.head == "value" else None
        kernel = stored(self, "classifier", (c.d_model, n), "embed labels", init)
        y = product("...d,dn->...n", x, kernel, c.dtype, jnp.float32)
        return biased(self, y, "classifier_bias", "labels") if c.head_bias else y
