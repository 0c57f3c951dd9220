"""LanguageModel: embeddings, a stack of blocks and a head, for every architecture."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Batch, Output
from lm.models.attention import attention_mask
from lm.models.config import ModelConfig
from lm.models.embeddings import Embeddings, Head
from lm.models.layers import Norm, bias, weight
from lm.models.positions import rotary_angles
from lm.models.stack import kinds, layers, run


class Pooler(nn.Module):
    """BERT's sentence vector: tanh of a dense layer on the first token (Devlin et al. 2019). [B, T, D] -> [B, D]."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        d = self.config.d_model
        return jnp.tanh(x_BTD[:, 0] @ weight(self, "kernel", (d, d), "embed pooled") + bias(self, "bias", (d,), "norm"))


class LanguageModel(nn.Module):
    """Pure functions over a plain dict of parameters; build one with `lm.build(config)`.

    model.init(key, batch)["params"]                      -> nested dict of arrays
    model.apply({"params": p}, batch)                     -> Output(logits float32 [B, T, V], hidden [B, T, D], pooled)
    model.apply({"params": p}, batch, method="hidden")    -> the same without logits
    model.apply({"params": p}, hidden, method="logits")   -> float32 [..., V], for use on chunks of hidden states
    """

    config: ModelConfig

    def init(self, *args, **kwargs):
        """Linen's `init`, with plain arrays as leaves."""
        return nn.meta.unbox(super().init(*args, **kwargs))

    def logical_axes(self) -> dict:
        """The name of every dimension of every parameter: a tree like params, of tuples of strings."""
        example = Batch.of([[0, 0]])
        boxed = jax.eval_shape(lambda: super(LanguageModel, self).init(jax.random.key(0), example))
        return jax.tree.map(lambda box: box.names, boxed["params"], is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c)
        self.layers = layers(c)
        if c.final_norm:
            self.final_norm = Norm(c)
        if c.pooler:
            self.pooler = Pooler(c)
        if c.head != "none":
            self.head = Head(c)

    def __call__(self, batch: Batch, cache: dict | None = None) -> Output:
        output = self.hidden(batch, cache)
        return output if self.config.head == "none" else dataclasses.replace(output, logits=self.logits(output.hidden))

    def hidden(self, batch: Batch, cache: dict | None = None) -> Output:
        """Final hidden states. With a `cache` (see `init_cache`) the batch continues it and the output carries the new one.

        Dropout is on when a "dropout" rng is given to `apply`.
        """
        c = self.config
        start, key_segments, layer_cache = 0, batch.segments, None
        if cache is not None:
            start, layer_cache = cache["length"], cache["layers"]
            key_segments = jax.lax.dynamic_update_slice_in_dim(cache["segments"], batch.segments, start, axis=1)
        views = []
        for kind in kinds(c):
            mask = attention_mask(c, batch.segments, key_segments, start, c.sliding_window if kind == "local" else 0)
            theta = c.local_rope_theta if kind == "local" and c.local_rope_theta else c.rope_theta
            views.append((mask, rotary_angles(c, batch.positions, theta) if c.positions == "rotary" else None))
        x, layer_cache = run(c, self.layers, self.embeddings(batch.tokens, batch.positions, batch.types), layer_cache, views, start)
        if c.final_norm:
            x = self.final_norm(x)
        if cache is not None:
            cache = {"layers": layer_cache, "segments": key_segments, "length": start + batch.tokens.shape[1]}
        return Output(logits=None, hidden=x, pooled=self.pooler(x) if c.pooler else None, cache=cache)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> float32 logits [..., V]. Raises ValueError for a model without a head."""
        if self.config.head == "none":
            raise ValueError(f"this {self.config.family} model has no head, so no logits: set model.head to causal_lm or masked_lm")
        return self.head(hidden, self.embeddings.token if self.config.tie_embeddings else None)


def init_cache(c: ModelConfig, batch_size: int, length: int) -> dict:
    """An empty KV cache of `length` slots: zeros in the compute dtype, laid out as `config.layers` asks."""
    slot = (batch_size, length, c.n_kv_heads, c.head_dim)
    layer = lambda *lead: {name: jnp.zeros((*lead, *slot), c.dtype) for name in ("key", "value")}
    entries = [layer() for _ in range(c.n_layers)] if c.layers == "separate" else layer(c.n_layers)
    return {"layers": entries, "segments": jnp.zeros((batch_size, length), jnp.int32), "length": jnp.int32(0)}


def build(config: ModelConfig) -> LanguageModel:
    """The model that `config` describes: a Linen module without parameters."""
    return LanguageModel(config)


def separate(model: LanguageModel, params: dict) -> tuple[LanguageModel, dict]:
    """The same model with its stacked layers split into one subtree each, as generation runs it.

    A decoding loop then reads every layer's weights in place; slicing a stacked array would copy them at each step. Do it
    once and pass the result to `generate` when generating often: it costs one copy of the layers. Shared layers stay as they are.
    """
    c = model.config
    if c.layers == "separate" or c.shared_layers:
        return model, params
    rest = {name: value for name, value in params.items() if name != "layers"}
    split = {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(c.n_layers)}
    return build(c.replace(layers="separate")), rest | split


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, batch):
    return model.apply({"params": params}, batch)


def forward(model: LanguageModel, params: dict, batch: Batch) -> Output:
    """Logits and hidden states for every position, compiled once a shape: for inspection and tests."""
    return _apply(model, params, batch)
