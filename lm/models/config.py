"""ModelConfig: one frozen dataclass describes every architecture, and says in words what does not fit together."""

import dataclasses
from typing import Any

from lm.models.checks import DTYPES, LM_HEADS, ConfigError, check, nearest

__all__ = ["DTYPES", "LM_HEADS", "ConfigError", "ModelConfig", "nearest"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and numerics of a model. Sizes are counts of elements; token ids are ints.

    Raises ConfigError on construction when a value is unknown or two fields contradict each other.
    """

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int  # 0, as the next two, for a model without attention
    n_kv_heads: int
    head_dim: int
    d_ff: int  # 0 = layers without an mlp (Mamba)
    max_length: int  # longest sequence in tokens
    causal: bool = True  # False: every token sees its whole document (encoder)
    positions: str = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: tuple[
        tuple[str, float], ...
    ] = ()  # () or llama3 / linear scaling as sorted (name, value) pairs
    rotary_fraction: float = 1.0  # of each head's features; the rest are not turned (GPT-NeoX)
    relative_buckets: int = 0  # relative positions: learned biases of the attention scores (T5)
    relative_max_distance: int = 0  # from which on all distances share a bucket
    relative_per_layer: bool = (
        False  # every layer has its own biases (UMT5); else the first layer's serve all
    )
    position_offset: int = 0  # rows of the learned table before that of position 0 (OPT, RoBERTa)
    sliding_window: int = 0  # attend to tokens nearer than this, itself included; 0 = all
    layer_pattern: tuple[
        str, ...
    ] = ()  # kinds of consecutive layers, repeated: local (in sliding_window) | global | ssm; () = all alike
    local_rope_theta: float = 0.0  # rope_theta of the local layers of a pattern; 0 = the same
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True  # of a layernorm
    norm_plus_one: bool = False  # scales are stored less one (Gemma)
    norm_placement: str = "pre"  # before the mixer | post: after the residual sum (BERT) | output: of the mixer | sandwich: pre and output
    first_norm_on_stream: bool = False  # the first attention's norm acts on the residual stream as well (ModernBERT's embedding norm)
    qk_norm: str = "none"  # rmsnorm of queries and keys, over each head (Qwen3) | over the whole projection (OLMo 2)
    parallel_residual: bool = False  # attention and mlp both read the layer's input (GPT-NeoX)
    activation: str = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False  # and of the dense layer in a head
    encoder_layers: int = 0  # of a bidirectional encoder, whose output every layer of the decoder attends to; 0 = none
    encoder_heads: int = 0  # the encoder's heads and mlp width where they are not the decoder's
    encoder_d_ff: int = 0
    ssm_inner: int = 0  # state-space layers: width inside, usually 2 d_model; 0 = there are none
    ssm_state: int = 0  # N
    ssm_conv: int = 4  # tokens that the convolution sees
    ssm_dt_rank: int = 0  # Mamba: width between the two projections that make dt
    ssm_heads: int = 0  # Mamba-2: ssm_inner = ssm_heads * ssm_head_dim
    ssm_head_dim: int = 0
    ssm_groups: int = 1  # Mamba-2: sets of B and C, each serving as many heads, whose features the gated norm normalises together
    ssm_chunk: int = 0  # tokens computed at once; 0 = what suits the kind. Changes no result
    ssm_bias: bool = False  # of the projections in and out
    ssm_conv_bias: bool = True
    ssm_inner_norm_eps: float = (
        0.0  # Mamba: RMS normalisation, without a scale, of dt, B and C (FalconMamba); 0 = none
    )
    ssm_dt_limit: tuple[float, ...] = ()  # Mamba-2: dt is clipped to (lowest, highest)
    neighbour_layers: tuple[
        int, ...
    ] = ()  # layers that attend to retrieved neighbours (RETRO), counted from 0
    neighbour_chunk: int = 64  # tokens that share their neighbours
    neighbour_width: int = 0  # of the neighbours' vectors; 0 = d_model
    score_dim: float = 0.0  # attention scores are divided by its square root; 0 = head_dim
    attention_softcap: float = (
        0.0  # scores pass through cap * tanh(score / cap) (Gemma 2); 0 = none
    )
    logit_softcap: float = 0.0  # the same for the logits
    shared_layers: bool = False  # one layer's parameters serve all n_layers (ALBERT)
    embedding_width: int = 0  # of all embedding tables, projected to d_model (ALBERT, ELECTRA); 0 = d_model, no projection
    scale_embeddings: bool = (
        False  # token vectors times sqrt(d_model) (Vaswani et al. 2017, section 3.4; Gemma)
    )
    type_vocab_size: int = 0  # BERT token types; 0 = none
    embedding_norm: bool = False  # norm right after the embeddings (BERT)
    final_norm: bool = True  # norm after the last block
    pooler: bool = False  # BERT pooler: tanh(W h_0 + b)
    head: str = "causal_lm"
    head_activation: str = ""  # in a masked-language head; "" = activation
    head_bias: bool = (
        False  # of the logits of a causal or seq2seq head, and of a classifier's labels
    )
    logit_scale: float = (
        1.0  # hidden states are multiplied by this before the table (T5: d_model ** -0.5)
    )
    n_labels: int = 0  # of a classification head; 1 = regression
    label_names: tuple[str, ...] = ()  # () = they have none
    pooling: str = (
        "last"  # the position that a sequence's label or embedding is read from, or the mean of all
    )
    head_dense: str = ""  # activation of a dense layer before the classifier; "" = no such layer
    head_dense_bias: bool | None = None  # of that layer; None = as mlp_bias
    head_norm: bool = False  # norm after that layer (ModernBERT)
    normalize_embedding: bool = True  # an embedding head's vectors have length 1
    tie_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None  # what an encoder-decoder's answers begin after
    forced_bos_token_id: int | None = None  # the first token of every answer (mBART: its language)
    forced_eos_token_id: int | None = (
        None  # the last token of an answer as long as it may be (BART)
    )
    initializer_range: float = 0.02
    dropout: float = 0.0  # of what mixers and mlps add to the residual stream, while training
    # How it is computed; none of these changes the result beyond rounding.
    dtype: str = "float32"  # of activations and matmul inputs
    param_dtype: str = "float32"  # of stored parameters
    layers: str = "scan"  # scan | unrolled (both: params stacked under "layers") | separate ("layers_0", ...; generation)
    remat: str = "none"  # what the backward pass recomputes: none | dots (all but matmuls) | full (everything)

    def __post_init__(self):
        for field in dataclasses.fields(self):  # lists, when read from JSON
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(
                    self, field.name, tuple(tuple(x) if isinstance(x, list) else x for x in value)
                )
        check(self)

    @property
    def rotary_dim(self) -> int:
        """Features of each head that rotary positions turn."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of every layer: global | local | ssm."""
        alike = "ssm" if self.ssm_inner else "local" if self.sliding_window else "global"
        pattern = self.layer_pattern or (alike,)
        return tuple(pattern[i % len(pattern)] for i in range(self.n_layers))

    @property
    def period(self) -> int:
        """After how many layers the shapes of their parameters repeat: layer i is entry i // period of block i % period."""
        shapes = [
            (kind == "ssm", i in self.neighbour_layers) for i, kind in enumerate(self.layer_kinds)
        ]
        whole = [n for n in range(1, self.n_layers + 1) if self.n_layers % n == 0]
        return next(
            n for n in whole if all(shape == shapes[i % n] for i, shape in enumerate(shapes))
        )

    @property
    def encoder(self) -> "ModelConfig":
        """The encoder of an encoder-decoder as a model of its own."""
        heads = self.encoder_heads or self.n_heads
        return self.replace(
            n_layers=self.encoder_layers, encoder_layers=0, encoder_heads=0, encoder_d_ff=0, causal=False, head="none", head_bias=False,
            head_dense="", head_norm=False, n_labels=0, label_names=(), n_heads=heads,
            neighbour_layers=(), d_ff=self.encoder_d_ff or self.d_ff,
            head_dim=self.n_heads * self.head_dim // heads, n_kv_heads=heads if self.encoder_heads else self.n_kv_heads,
        )  # fmt: skip

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed; an unknown field is a ConfigError that suggests the nearest name."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(
                    f"model.{name} is not a field of ModelConfig{nearest(name, known)}"
                )
        return dataclasses.replace(self, **changes)
