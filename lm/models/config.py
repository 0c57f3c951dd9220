"""ModelConfig: one frozen dataclass describes every architecture, and says in words what does not fit together."""

import dataclasses
import difflib
from typing import Any

POSITIONS = ("learned", "rotary", "none")
NORMS = ("layernorm", "rmsnorm")
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
    sliding_window: int = 0  # attend to at most this many latest tokens, itself included; 0 = all
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    post_norm: bool = False  # True: norm after the residual sum (BERT); False: before each mixer (GPT-2, Llama)
    activation: str = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    type_vocab_size: int = 0  # BERT token types; 0 = none
    embedding_norm: bool = False  # norm right after the embeddings (BERT)
    final_norm: bool = True  # norm after the last block
    pooler: bool = False  # BERT pooler: tanh(W h_0 + b)
    head: str = "causal_lm"
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
        for name, allowed in (
            ("positions", POSITIONS), ("norm", NORMS), ("activation", ACTIVATIONS), ("head", HEADS),
            ("layers", LAYERS), ("remat", REMAT), ("dtype", DTYPES), ("param_dtype", DTYPES),
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
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model.dropout={self.dropout}: expected a probability in [0, 1)")
        if self.sliding_window < 0:
            raise ConfigError(f"model.sliding_window={self.sliding_window}: expected 0 (all tokens) or a number of tokens")
        if self.head == "causal_lm" and not self.causal:
            raise ConfigError("model.head='causal_lm' needs model.causal=True: a bidirectional model sees the token it predicts")
        for name in ("bos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ConfigError(f"model.{name}={value} is outside the vocabulary of {self.vocab_size}")
        for value in self.eos_token_ids:
            if not 0 <= value < self.vocab_size:
                raise ConfigError(f"model.eos_token_ids: {value} is outside the vocabulary of {self.vocab_size}")

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
