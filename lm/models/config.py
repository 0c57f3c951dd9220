"""ModelConfig: one frozen dataclass that describes every architecture."""

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
    n_heads: int  # 0 in a model without attention; also the next two
    n_kv_heads: int
    head_dim: int
    d_ff: int  # 0 = layers without an MLP (Mamba)
    max_length: int  # longest sequence in tokens
    causal: bool = True  # False: every token sees its whole document (encoder)
    positions: str = "rotary"
    rope_theta: float = 10_000.0
    # sorted (name, value) pairs of Llama 3 or linear scaling; () = none
    rope_scaling: tuple[tuple[str, float], ...] = ()
    rotary_fraction: float = 1.0  # share of each head's features that are rotated (GPT-NeoX)
    relative_buckets: int = 0  # learned biases of the attention scores (T5)
    relative_max_distance: int = 0  # distances from here on share a bucket
    # every layer has its own biases (UMT5); False: all layers share one table
    relative_per_layer: bool = False
    position_offset: int = 0  # learned table's row of position 0 (OPT, RoBERTa)
    sliding_window: int = 0  # attend to tokens at a distance below this; 0 = all
    # repeated kinds of consecutive layers: local (sliding_window) | global | ssm; () = all alike
    layer_pattern: tuple[str, ...] = ()
    local_rope_theta: float = 0.0  # rope_theta of local layers; 0 = the same
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True  # of a LayerNorm
    norm_plus_one: bool = False  # the stored scale is the scale minus 1 (Gemma)
    # pre: on the mixer's input | post: after the residual sum (BERT) | output: on the mixer's
    # output | sandwich: pre and output
    norm_placement: str = "pre"
    # normalise the residual stream before the first attention (ModernBERT's embedding norm)
    first_norm_on_stream: bool = False
    # RMSNorm of queries and keys: none | head: over each head (Qwen3) | projection: over all heads
    # together (OLMo 2)
    qk_norm: str = "none"
    parallel_residual: bool = False  # attention and MLP read the same input (GPT-NeoX)
    activation: str = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False  # also of a head's dense layer
    # layers of a bidirectional encoder that every decoder layer attends to; 0 = no encoder
    encoder_layers: int = 0
    encoder_heads: int = 0  # 0 = the decoder's
    encoder_d_ff: int = 0  # 0 = the decoder's
    ssm_inner: int = 0  # inner width of state-space layers, usually 2 d_model; 0 = none
    ssm_state: int = 0  # state size N
    ssm_conv: int = 4  # width of the convolution in tokens
    ssm_dt_rank: int = 0  # Mamba: rank of the projection that computes dt
    ssm_heads: int = 0  # Mamba-2: ssm_inner = ssm_heads * ssm_head_dim
    ssm_head_dim: int = 0
    # Mamba-2: number of B and C pairs; also the groups of the gated norm
    ssm_groups: int = 1
    # tokens computed at once; 0 = the default of the kind; does not change results
    ssm_chunk: int = 0
    ssm_bias: bool = False  # of the input and output projections
    ssm_conv_bias: bool = True
    # Mamba: RMS normalisation without a scale of dt, B and C (FalconMamba); 0 = none
    ssm_inner_norm_eps: float = 0.0
    ssm_dt_limit: tuple[float, ...] = ()  # Mamba-2: dt is clipped to (lowest, highest)
    # layers that attend to retrieved neighbours (RETRO), counted from 0
    neighbour_layers: tuple[int, ...] = ()
    neighbour_chunk: int = 64  # tokens that share their neighbours
    neighbour_width: int = 0  # width of the neighbours' vectors; 0 = d_model
    score_dim: float = 0.0  # scores are divided by its square root; 0 = head_dim
    # scores become cap * tanh(score / cap) (Gemma 2); 0 = none
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0  # the same for the logits
    shared_layers: bool = False  # all layers share one layer's parameters (ALBERT)
    # width of the embedding tables, projected to d_model (ALBERT, ELECTRA); 0 = d_model, no
    # projection
    embedding_width: int = 0
    # token vectors times sqrt(d_model) (Vaswani et al. 2017, section 3.4; Gemma)
    scale_embeddings: bool = False
    type_vocab_size: int = 0  # BERT token types; 0 = none
    embedding_norm: bool = False  # norm right after the embeddings (BERT)
    final_norm: bool = True  # norm after the last block
    pooler: bool = False  # BERT pooler: tanh(W h_0 + b)
    head: str = "causal_lm"
    head_activation: str = ""  # of a masked-LM head; "" = activation
    # of a causal or seq2seq head's logits, and of a classifier's labels
    head_bias: bool = False
    # multiplies hidden states before the output table (T5: d_model ** -0.5)
    logit_scale: float = 1.0
    n_labels: int = 0  # of a classification head; 1 = regression
    label_names: tuple[str, ...] = ()  # () = unnamed
    # where a sequence's label or embedding is read: first | last | mean of all positions
    pooling: str = "last"
    head_dense: str = ""  # activation of a dense layer before the classifier; "" = no layer
    head_dense_bias: bool | None = None  # of that layer; None = mlp_bias
    head_norm: bool = False  # norm after that layer (ModernBERT)
    normalize_embedding: bool = True  # embedding vectors have length 1
    tie_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None  # first decoder input, before the output
    forced_bos_token_id: int | None = None  # first token of every output (mBART: the language)
    # last token of an output of maximal length (BART)
    forced_eos_token_id: int | None = None
    initializer_range: float = 0.02
    dropout: float = 0.0  # of mixer and MLP outputs, in training
    # Computation; none of these changes the result beyond rounding.
    dtype: str = "float32"  # of activations and matmul inputs
    param_dtype: str = "float32"  # of stored parameters
    # scan | unrolled (both stack params under "layers") | separate ("layers_0", ...; generation)
    layers: str = "scan"
    # dense | chunked: memory grows with the length, not with its square | cudnn: NVIDIA GPUs
    # | splash: TPUs | module:Class of your own | auto: the platform's kernel where it can compute
    # the model, else dense for short rows and chunked for others
    attention_backend: str = "auto"
    # recomputed in the backward pass: none | dots: all but matmuls | full: everything
    remat: str = "none"

    def __post_init__(self):
        for field in dataclasses.fields(self):  # values read from JSON are lists
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(
                    self, field.name, tuple(tuple(x) if isinstance(x, list) else x for x in value)
                )
        check(self)

    @property
    def rotary_dim(self) -> int:
        """Number of features of each head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """Kind of every layer: global | local | ssm."""
        alike = "ssm" if self.ssm_inner else "local" if self.sliding_window else "global"
        pattern = self.layer_pattern or (alike,)
        return tuple(pattern[i % len(pattern)] for i in range(self.n_layers))

    @property
    def period(self) -> int:
        """Number of layers after which the parameter shapes repeat.

        Layer i is entry i // period of the stacked block i % period.
        """
        shapes = [
            (kind == "ssm", i in self.neighbour_layers) for i, kind in enumerate(self.layer_kinds)
        ]
        whole = [n for n in range(1, self.n_layers + 1) if self.n_layers % n == 0]
        return next(
            n for n in whole if all(shape == shapes[i % n] for i, shape in enumerate(shapes))
        )

    @property
    def encoder(self) -> "ModelConfig":
        """Config of the encoder of an encoder-decoder, as a model of its own."""
        heads = self.encoder_heads or self.n_heads
        return self.replace(
            n_layers=self.encoder_layers,
            encoder_layers=0,
            encoder_heads=0,
            encoder_d_ff=0,
            causal=False,
            head="none",
            head_bias=False,
            head_dense="",
            head_norm=False,
            n_labels=0,
            label_names=(),
            decoder_start_token_id=None,
            forced_bos_token_id=None,
            forced_eos_token_id=None,
            n_heads=heads,
            neighbour_layers=(),
            d_ff=self.encoder_d_ff or self.d_ff,
            head_dim=self.n_heads * self.head_dim // heads,
            n_kv_heads=heads if self.encoder_heads else self.n_kv_heads,
        )

    def replace(self, **changes: Any) -> "ModelConfig":
        """Return a copy with some fields changed.

        Raises ConfigError for an unknown field, and suggests the nearest name.
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(
                    f"model.{name} is not a field of ModelConfig{nearest(name, known)}"
                )
        return dataclasses.replace(self, **changes)
