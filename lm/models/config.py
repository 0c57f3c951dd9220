"""ModelConfig: one frozen dataclass describes every architecture, and says in words what does not fit together."""

import dataclasses
import difflib
from typing import Any

POSITIONS = ("learned", "rotary", "none")
NORMS = ("layernorm", "rmsnorm")
NORM_PLACEMENTS = ("pre", "post", "sandwich", "output")
QK_NORMS = ("none", "head", "projection")
LAYER_KINDS = ("global", "local")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")
HEADS = ("causal_lm", "masked_lm", "none")
LAYERS = ("scan", "unrolled", "separate")
REMAT = ("none", "dots", "full")
DTYPES = ("float32", "bfloat16", "float16")


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the field, its value and what was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and numerics of a model. Sizes are counts of elements; token ids are ints.

    Raises ConfigError on construction when a value is unknown or two fields contradict each other.
    """

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    max_length: int  # longest sequence in tokens
    causal: bool = True  # False: every token sees its whole document (encoder)
    positions: str = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: tuple[tuple[str, float], ...] = ()  # () or llama3 / linear scaling as sorted (name, value) pairs
    rotary_fraction: float = 1.0  # of each head's features; the rest are not turned (GPT-NeoX)
    position_offset: int = 0  # rows of the learned table before that of position 0 (OPT, RoBERTa)
    sliding_window: int = 0  # attend to tokens nearer than this, itself included; 0 = all
    layer_pattern: tuple[str, ...] = ()  # kinds of consecutive layers, repeated: local (in sliding_window) | global; () = all alike
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
    mlp_bias: bool = False  # and of the dense layer in a masked-language head
    score_dim: float = 0.0  # attention scores are divided by its square root; 0 = head_dim
    attention_softcap: float = 0.0  # scores pass through cap * tanh(score / cap) (Gemma 2); 0 = none
    logit_softcap: float = 0.0  # the same for the logits
    shared_layers: bool = False  # one layer's parameters serve all n_layers (ALBERT)
    embedding_width: int = 0  # of all embedding tables, projected to d_model (ALBERT, ELECTRA); 0 = d_model, no projection
    scale_embeddings: bool = False  # token vectors times sqrt(d_model) (Vaswani et al. 2017, section 3.4; Gemma)
    type_vocab_size: int = 0  # BERT token types; 0 = none
    embedding_norm: bool = False  # norm right after the embeddings (BERT)
    final_norm: bool = True  # norm after the last block
    pooler: bool = False  # BERT pooler: tanh(W h_0 + b)
    head: str = "causal_lm"
    head_activation: str = ""  # in a masked-language head; "" = activation
    tie_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    dropout: float = 0.0  # on embeddings, attention output and mlp output while training
    # How it is computed; none of these changes the result beyond rounding.
    dtype: str = "float32"  # of activations and matmul inputs
    param_dtype: str = "float32"  # of stored parameters
    layers: str = "scan"  # scan | unrolled (both: params stacked under "layers") | separate ("layers_0", ...; generation)
    remat: str = "none"  # what the backward pass recomputes: none | dots (all but matmuls) | full (everything)

    def __post_init__(self):
        for name in ("rope_scaling", "layer_pattern", "eos_token_ids"):  # lists, when read from JSON
            object.__setattr__(self, name, tuple(tuple(x) if isinstance(x, list) else x for x in getattr(self, name)))
        for name, allowed in (
            ("positions", POSITIONS), ("norm", NORMS), ("activation", ACTIVATIONS), ("head", HEADS),
            ("layers", LAYERS), ("remat", REMAT), ("dtype", DTYPES), ("param_dtype", DTYPES),
            ("norm_placement", NORM_PLACEMENTS), ("qk_norm", QK_NORMS), ("head_activation", ("", *ACTIVATIONS)),
        ):  # fmt: skip
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"model.{name}={value!r} is unknown{nearest(str(value), allowed)}; one of {', '.join(allowed)}")
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "max_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"model.{name}={value!r}: expected a positive integer")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"model.n_heads={self.n_heads} is not a multiple of model.n_kv_heads={self.n_kv_heads}: "
                "every key/value head serves the same number of query heads"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ConfigError(f"model.head_dim={self.head_dim} is odd, but rotary positions turn pairs of features: make it even")
        if self.positions == "rotary" and (not 0.0 < self.rotary_fraction <= 1.0 or self.rotary_dim % 2 or not self.rotary_dim):
            raise ConfigError(
                f"model.rotary_fraction={self.rotary_fraction} turns {self.rotary_dim} of model.head_dim={self.head_dim} features: "
                "expected a fraction in (0, 1] that makes an even number, as features turn in pairs"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout={self.dropout}: expected a probability in [0, 1)")
        for name, zero in (
            ("sliding_window", "all tokens"), ("position_offset", "none"), ("embedding_width", "d_model"),
            ("local_rope_theta", "rope_theta"), ("score_dim", "head_dim"), ("attention_softcap", "none"), ("logit_softcap", "none"),
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ConfigError(f"model.{name}={getattr(self, name)}: expected 0 ({zero}) or a positive number")
        self._check_layers()
        if self.embedding_width and self.head == "causal_lm":
            raise ConfigError(
                f"model.embedding_width={self.embedding_width} needs model.head='masked_lm' or 'none': no other head projects back"
            )
        if self.head == "causal_lm" and not self.causal:
            raise ConfigError("model.head='causal_lm' needs model.causal=True: a bidirectional model sees the token it predicts")
        for name in ("bos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ConfigError(f"model.{name}={value} is outside the vocabulary of {self.vocab_size}")
        for value in self.eos_token_ids:
            if not 0 <= value < self.vocab_size:
                raise ConfigError(f"model.eos_token_ids: {value} is outside the vocabulary of {self.vocab_size}")

    def _check_layers(self):
        """What layers that differ, or do not, may be combined with."""
        for kind in self.layer_pattern:
            if kind not in LAYER_KINDS:
                raise ConfigError(
                    f"model.layer_pattern holds {kind!r}{nearest(str(kind), LAYER_KINDS)}; its kinds are {', '.join(LAYER_KINDS)}"
                )
        if len(self.layer_pattern) > self.n_layers:
            raise ConfigError(
                f"model.layer_pattern={self.layer_pattern} is longer than model.n_layers={self.n_layers}: give as many kinds as it needs"
            )
        if "local" in self.layer_pattern and not self.sliding_window:
            raise ConfigError("model.layer_pattern has local layers, but model.sliding_window=0: give their window in tokens")
        if self.local_rope_theta and "local" not in self.layer_pattern:
            raise ConfigError(
                f"model.local_rope_theta={self.local_rope_theta} is for the local layers of model.layer_pattern, which has none"
            )
        if self.parallel_residual and self.norm_placement != "pre":
            raise ConfigError(
                f"model.parallel_residual needs model.norm_placement='pre', not {self.norm_placement!r}: both mixers read one input"
            )
        if self.first_norm_on_stream and (self.parallel_residual or self.norm_placement not in ("pre", "sandwich")):
            raise ConfigError(
                "model.first_norm_on_stream needs model.parallel_residual=False and model.norm_placement='pre' or 'sandwich', "
                f"not {self.norm_placement!r}: otherwise no norm comes before the first attention alone"
            )
        if self.shared_layers and self.layers == "separate":
            raise ConfigError("model.layers='separate' cannot separate the layers of model.shared_layers=True: use scan or unrolled")

    @property
    def rotary_dim(self) -> int:
        """Features of each head that rotary positions turn."""
        return int(self.head_dim * self.rotary_fraction)

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed; an unknown field is a ConfigError that suggests the nearest name."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"model.{name} is not a field of ModelConfig{nearest(name, known)}")
        return dataclasses.replace(self, **changes)


def nearest(name: str, known) -> str:
    """' (did you mean ...?)' when some known name is close, else ''."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
