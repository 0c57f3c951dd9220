"""LanguageModel: embeddings, a stack of blocks and a head, for every architecture."""

import dataclasses
import functools
import logging
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Batch, Output
from lm.models import inputs
from lm.models.attention import Mask, RelativeBias, backends, see, shared_bias
from lm.models.block import Context
from lm.models.config import LM_HEADS, ModelConfig
from lm.models.embeddings import Embeddings
from lm.models.heads import SCALAR, Head, Pooler, pool
from lm.models.layers import Norm
from lm.models.stack import kinds, layers, run
from lm.xla_flags import avoid_wrong_fusion

log = logging.getLogger(__name__)


class Encoder(nn.Module):
    """Bidirectional encoder of an encoder-decoder; it uses the decoder's token table."""

    config: ModelConfig

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c, own_table=False)
        self.layers = layers(c, self.is_initializing())
        if c.final_norm:
            self.final_norm = Norm(c)
        if c.relative_buckets and not c.relative_per_layer:
            self.relative_bias = RelativeBias(c)

    def __call__(self, tokens_BS, segments_BS, positions_BS, table_VD) -> jax.Array:
        """Encode tokens, segments and positions, int [B, S] each, to [B, S, D]."""
        x = self.embeddings(tokens_BS, positions_BS, table_VD=table_VD)
        x, _ = transform(self, x, segments_BS, positions_BS)
        return x


def transform(
    module, x, segments_BT, positions_BT, cache=None, **context
) -> tuple[jax.Array, object]:
    """Apply the layers and the final norm of an encoder or decoder.

    Maps [B, T, D] to [B, T, D] and the layers' cache.
    """
    c: ModelConfig = module.config
    views = [see(c, kind, segments_BT, positions_BT, cache) for kind in kinds(c)]
    shared = None
    if c.relative_buckets and not c.relative_per_layer:
        shared = shared_bias(c, module.relative_bias(), views[0].mask, cache is not None)
    context = Context(
        segments=segments_BT,
        view=None,
        bias=shared,
        start=0 if cache is None else cache["length"],
        **context,
    )
    x, layer_cache = run(
        c, module.layers, x, None if cache is None else cache["layers"], context, views
    )
    return module.final_norm(x) if c.final_norm else x, layer_cache


class LanguageModel(nn.Module):
    """Pure functions over a plain dict of parameters; build one with `lm.build(config)`.

        model.init(key, batch)["params"]                     -> nested dict of arrays
        model.apply({"params": p}, batch)                    -> Output: logits float32 [B, T, V],
                                                                hidden [B, T, D], pooled
        model.apply({"params": p}, batch, method="hidden")   -> the same without logits
        model.apply({"params": p}, hidden, method="logits")  -> float32 [..., V]; also for chunks

    Other heads give logits [B, n_labels] (sequence_classification), [B, T, n_labels]
    (token_classification), [B, T, 2] (question_answering: start and end) or [B, T] (value;
    replaced_token_detection: above 0 for a token that was replaced), or only `pooled` [B, D]
    (embedding). Outputs for a whole sequence require rows of one document.
    """

    config: ModelConfig

    def init(self, *args, **kwargs):
        """Run Linen's `init` and return plain arrays as leaves."""
        return nn.meta.unbox(super().init(*args, **kwargs))

    def logical_axes(self) -> dict:
        """Return the axis names of every parameter: a tree like params, of tuples of strings."""
        return jax.tree.map(
            lambda box: box.names,
            _declared(self.config),
            is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
        )

    def shapes(self) -> dict:
        """Return the ShapeDtypeStruct of every parameter: a tree like params."""
        return nn.meta.unbox(_declared(self.config))

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c)
        if c.encoder_layers:
            self.encoder = Encoder(c.encoder)
        self.layers = layers(c, self.is_initializing())
        if c.relative_buckets and not c.relative_per_layer:
            self.relative_bias = RelativeBias(c)
        if c.final_norm:
            self.final_norm = Norm(c)
        if c.pooler:
            self.pooler = Pooler(c)
        if c.head not in ("none", "embedding"):
            self.head = Head(c)

    def __call__(self, batch: Batch, cache: dict | None = None) -> Output:
        c, out = self.config, self.hidden(batch, cache)
        if c.head == "none":
            return out
        if c.head in LM_HEADS:
            return dataclasses.replace(out, logits=self.logits(out.hidden))
        if c.head == "embedding":
            vector = pool(c, out.hidden, batch.segments).astype(jnp.float32)
            length = (
                jnp.linalg.norm(vector, axis=-1, keepdims=True) if c.normalize_embedding else 1.0
            )
            return dataclasses.replace(out, pooled=vector / jnp.maximum(length, 1e-12))
        x = out.hidden
        if c.head == "sequence_classification":
            x = out.pooled if c.pooler else pool(c, x, batch.segments)
        labels = self.head(jnp.asarray(x))
        return dataclasses.replace(out, logits=labels[..., 0] if c.head in SCALAR else labels)

    def hidden(self, batch: Batch, cache: dict | None = None) -> Output:
        """Compute the final hidden states.

        With a `cache` (see `init_cache`) the batch continues the cached rows, and the output has
        the new cache. An encoder-decoder reads `batch.encoder_tokens` and caches the keys and
        values that its decoder needs; batches that continue such a cache have no encoder_tokens.
        Dropout is active when `apply` is given a "dropout" rng. Raises ValueError for a batch that
        lacks what the model needs, or has fields that the model would ignore.
        """
        c = self.config
        batch = self._checked(batch, cache)
        encoded: jax.Array | None = None
        around: dict[str, Any] = {}
        if cache is not None:
            at, tokens = cache["length"], batch.tokens.shape[1]
            at = at % cache["segments"].shape[1] if tokens == 1 else at  # see `init_cache`
            segments = jax.lax.dynamic_update_slice_in_dim(
                cache["segments"], batch.segments, at, axis=1
            )
            cache = {**cache, "segments": segments}
        if c.encoder_layers:
            fresh = cache is None or batch.encoder_tokens is not None
            encoder_segments = batch.encoder_segments if fresh else cache["encoder_segments"]
            if batch.encoder_tokens is not None:
                encoded = self.encoder(
                    batch.encoder_tokens,
                    encoder_segments,
                    batch.encoder_positions,
                    self.embeddings.token,
                )
            owners = encoder_segments
            if batch.encoder_owners is not None:
                owners = jnp.where(jnp.asarray(encoder_segments) > 0, batch.encoder_owners, 0)
            around = dict(
                encoded=encoded,
                encoder_mask=Mask.between(batch.segments, jnp.asarray(owners)),
            )
            cache = None if cache is None else {**cache, "encoder_segments": owners}
        if c.neighbour_layers:
            # A cached row holds one document, padded on the left: its tokens' positions count.
            start = 0 if cache is None else batch.positions[:, -1] + 1 - batch.tokens.shape[1]
            around |= dict(
                neighbours=batch.neighbours,
                neighbour_segments=batch.neighbour_segments,
                neighbour_start=start,
            )
        x = self.embeddings(batch.tokens, batch.positions, batch.types)
        x, layer_cache = transform(self, x, batch.segments, batch.positions, cache, **around)
        if cache is not None:
            cache = {
                **cache,
                "layers": layer_cache,
                "length": cache["length"] + batch.tokens.shape[1],
            }
        pooled = self.pooler(x) if c.pooler else None
        return Output(logits=None, hidden=x, pooled=pooled, encoder_hidden=encoded, cache=cache)

    def _checked(self, batch: Batch, cache) -> Batch:
        """Validate the batch; at initialisation, fill in missing optional inputs."""
        c = self.config
        inputs.check(c, batch)
        if self.is_initializing():
            if c.encoder_layers and batch.encoder_tokens is None:
                same = dict(
                    encoder_tokens=batch.tokens,
                    encoder_segments=batch.segments,
                    encoder_positions=batch.positions,
                )
                batch = dataclasses.replace(batch, **same)
            if c.neighbour_layers and batch.neighbours is None:
                one = jnp.zeros((batch.tokens.shape[0], 1, 1), jnp.int32)
                vectors = jnp.zeros((*one.shape, c.neighbour_width or c.d_model), c.dtype)
                batch = dataclasses.replace(batch, neighbours=vectors, neighbour_segments=one)
        if c.neighbour_layers and batch.neighbours is None:
            _say_alone(c.family, c.neighbour_layers)
        if c.encoder_layers and batch.encoder_tokens is None and cache is None:
            raise ValueError(
                f"this {c.family} model has an encoder, and the batch no encoder_tokens: "
                "give them to Batch.of"
            )
        if not c.encoder_layers and batch.encoder_tokens is not None:
            raise ValueError(
                f"this {c.family} model has no encoder, so that the batch's encoder_tokens would "
                "be ignored: leave them out"
            )
        if not c.neighbour_layers and batch.neighbours is not None:
            raise ValueError(
                f"this {c.family} model attends to no neighbours, so that the batch's would be "
                "ignored: set model.neighbour_layers"
            )
        return batch

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Map hidden [..., D] to float32 logits [..., V].

        Raises ValueError for a model without a language-model head.
        """
        c = self.config
        if c.head not in LM_HEADS:
            raise ValueError(
                f"this {c.family} model with head={c.head!r} has no logits over tokens: "
                f"model.head must be {', '.join(LM_HEADS)}"
            )
        return self.head(hidden, self.embeddings.token if c.tie_embeddings else None)


@functools.lru_cache(maxsize=64)
def _declared(config: ModelConfig) -> dict:
    """Shapes, dtypes and axis names of the parameters; the model is traced once for a config."""
    model, example = LanguageModel(config, parent=None), Batch.of([[0, 0]])
    return jax.eval_shape(lambda: nn.Module.init(model, jax.random.key(0), example))["params"]


@functools.cache  # once a process
def _say_alone(family: str, layers: tuple[int, ...]) -> None:
    log.warning(
        "this %s model attends to retrieved neighbours in layers %s (neighbour_layers) and is "
        "given none: what it computes is what it knows without them",
        family,
        ", ".join(map(str, layers)),
    )


def build(config: ModelConfig) -> LanguageModel:
    """Build the model that `config` describes: a Linen module without parameters."""
    avoid_wrong_fusion(config.dtype)
    backends.check(config)
    return LanguageModel(config)


def separate(model: LanguageModel, params: dict) -> tuple[LanguageModel, dict]:
    """Split stacked layers into one subtree each, as generation uses them.

    A decoding loop then reads every layer's weights in place; slicing a stacked array would copy
    them at each step. The split costs one copy of the layers: when calling `generate` often, do it
    once and pass the result. Shared layers stay as they are.
    """
    c = model.config
    if c.layers == "separate" or c.shared_layers:
        return model, params
    rest = {name: value for name, value in params.items() if name != "layers"}
    stacks = (
        [params["layers"]]
        if c.period == 1
        else [params["layers"][f"block_{i}"] for i in range(c.period)]
    )
    split = {
        f"layers_{i}": jax.tree.map(lambda x, i=i: x[i // c.period], stacks[i % c.period])
        for i in range(c.n_layers)
    }
    if c.encoder_layers:
        rest["encoder"] = separate(build(c.encoder), rest["encoder"])[1]
    return build(c.replace(layers="separate")), rest | split


def laid_out(c: ModelConfig, params: dict) -> dict:
    """Params of a model of this config, its layers stacked or apart as `c.layers` says.

    They may be given either way; those that are as they should be are not copied.
    """
    apart = "layers_0" in params
    if c.shared_layers or apart == (c.layers == "separate"):
        return params
    if not apart:
        return separate(build(c.replace(layers="scan")), params)[1]
    stacks = [
        jax.tree.map(
            lambda *each: jnp.stack(each),
            *(params[f"layers_{i}"] for i in range(block, c.n_layers, c.period)),
        )
        for block in range(c.period)
    ]
    rest = {name: value for name, value in params.items() if not name.startswith("layers_")}
    if c.encoder_layers:
        rest["encoder"] = laid_out(c.encoder, rest["encoder"])
    blocks = {f"block_{i}": stack for i, stack in enumerate(stacks)}
    return rest | {"layers": stacks[0] if c.period == 1 else blocks}


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, batch):
    return model.apply({"params": params}, batch)


def forward(model: LanguageModel, params: dict, batch: Batch) -> Output:
    """Compute logits and hidden states for every position, for inspection and tests.

    Compiles once per shape. Raises ConfigError for tokens, positions and types outside the model's
    tables.
    """
    inputs.check(model.config, batch)
    return _apply(model, params, batch)
