"""ModernBERT (Warner et al. 2024): a pre-norm encoder with gated MLPs and rotary positions.

Two of three layers are windowed.
"""

from typing import Any

from lm.families import heads
from lm.families.family import (
    Family,
    activation,
    expect,
    head,
    special_tokens,
    special_tokens_to_hf,
    their_activation,
    value,
)
from lm.families.gpt2 import QKV, QKV_BIAS
from lm.families.rotary import layer_types, theta_of, windows
from lm.families.table import VECTOR, dense, linear, norm, row, table
from lm.models.config import ConfigError, ModelConfig

ARCHITECTURES = {"ModernBertForMaskedLM": "masked_lm", "ModernBertModel": "none"}
LAYER = "model.layers.{i}."
POOLINGS = {"cls": "first", "mean": "mean"}
GATE_UP, GATE_UP_BIAS = "layers/mlp/gate layers/mlp/up", "layers/mlp/gate_bias layers/mlp/up_bias"

WEIGHTS = table(
    row("embeddings/token", "model.embeddings.tok_embeddings.weight"),
    row(
        "layers/attention_norm/scale",
        LAYER + "attn_norm.weight",
        first="model.embeddings.norm.weight",
    ),
    row("layers/attention_norm/bias", LAYER + "attn_norm.bias", first="model.embeddings.norm.bias"),
    row(QKV, LAYER + "attn.Wqkv.weight", linear()),
    row(QKV_BIAS, LAYER + "attn.Wqkv.bias", VECTOR),
    dense("layers/attention/out", LAYER + "attn.Wo", inputs=2),
    norm("layers/mlp_norm", LAYER + "mlp_norm"),
    row(GATE_UP, LAYER + "mlp.Wi.weight", linear()),
    row(GATE_UP_BIAS, LAYER + "mlp.Wi.bias", VECTOR),
    dense("layers/mlp/down", LAYER + "mlp.Wo"),
    norm("final_norm", "model.final_norm"),
    dense("head/dense", "head.dense"),
    norm("head/norm", "head.norm"),
    row("head/bias", "decoder.bias"),
    row("head/table", "decoder.weight"),
)

LABELS = tuple(
    heads.label_head(
        f"ModernBertFor{name}",
        head,
        "classifier",
        dense_layer="head.dense",
        norm_layer="head.norm",
        head_norm=True,
        fields=lambda c: dict(head_dense=c.head_activation),
    )
    for name, head in (
        ("SequenceClassification", "sequence_classification"),
        ("TokenClassification", "token_classification"),
        ("QuestionAnswering", "question_answering"),
    )
)


def modernbert(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    vocab_size: int,
    max_length: int = 8192,
    **changes,
) -> ModelConfig:
    """Config of a ModernBERT of any size; `changes` are further fields of ModelConfig."""
    fields: dict[str, Any] = dict(
        family="modernbert",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=d_ff,
        max_length=max_length,
        causal=False,
        rope_theta=160_000.0,
        local_rope_theta=10_000.0,
        sliding_window=65,
        layer_pattern=("global", "local", "local"),
        norm="layernorm",
        norm_bias=False,
        first_norm_on_stream=True,
        activation="gelu",
        head="masked_lm",
        head_activation="gelu",
        pooling="first",
    )
    return ModelConfig(**fields | changes)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    bias = bool(hf.get("mlp_bias"))
    expect(hf, decoder_bias=True, classifier_bias=bias)
    pooling = hf.get("classifier_pooling") or "cls"
    if pooling not in POOLINGS:
        raise ConfigError(
            f"classifier_pooling={pooling!r} is not supported for model_type 'modernbert'; "
            f"one of {', '.join(POOLINGS)}"
        )
    n_layers, every, rotary = (
        value(hf, "num_hidden_layers"),
        hf.get("global_attn_every_n_layers") or 3,
        hf.get("rope_parameters") or {},
    )
    kinds = ["sliding_attention" if i % every else "full_attention" for i in range(n_layers)]
    # local_attention counts both sides but not the token itself
    window = windows(hf, hf.get("local_attention", 128) // 2 + 1, kinds)
    theta = theta_of(rotary.get("full_attention"), hf.get("global_rope_theta") or 160_000.0)
    local = theta_of(rotary.get("sliding_attention"), hf.get("local_rope_theta") or 10_000.0)
    if hf.get("rope_scaling"):
        raise ConfigError(
            f"rope_scaling={hf['rope_scaling']!r} is not supported for model_type 'modernbert'"
        )
    if not window["layer_pattern"]:
        theta, local = (local if window["sliding_window"] else theta), 0.0
    attention_bias = bool(hf.get("attention_bias"))
    return modernbert(
        d_model=value(hf, "hidden_size"),
        n_layers=n_layers,
        n_heads=value(hf, "num_attention_heads"),
        d_ff=value(hf, "intermediate_size"),
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "max_position_embeddings"),
        rope_theta=theta,
        local_rope_theta=local,
        **window,
        norm_eps=hf.get("norm_eps", 1e-5),
        norm_bias=hf.get("norm_bias", False),
        activation=activation(hf, "hidden_activation", "gelu"),
        head_activation=activation(hf, "classifier_activation", "gelu"),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=bias,
        initializer_range=hf.get("initializer_range", 0.02),
        dropout=hf.get("mlp_dropout", 0.0),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        head=head(hf, ARCHITECTURES),
        pooling=POOLINGS[pooling],
        **special_tokens(hf),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    local = c.local_rope_theta or c.rope_theta
    special = special_tokens_to_hf(c) | dict(
        cls_token_id=c.bos_token_id, sep_token_id=next(iter(c.eos_token_ids), None)
    )
    return dict(
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        intermediate_size=c.d_ff,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_length,
        layer_types=layer_types(c),
        global_rope_theta=c.rope_theta,
        local_rope_theta=local,
        local_attention=2 * max(c.sliding_window - 1, 0),
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in (("full_attention", c.rope_theta), ("sliding_attention", local))
        },
        norm_eps=c.norm_eps,
        norm_bias=c.norm_bias,
        hidden_activation=their_activation(c.activation),
        classifier_activation=their_activation(c.head_activation or c.activation),
        attention_bias=c.qkv_bias,
        mlp_bias=c.mlp_bias,
        classifier_bias=c.mlp_bias,
        decoder_bias=True,
        classifier_pooling="mean" if c.pooling == "mean" else "cls",
        initializer_range=c.initializer_range,
        mlp_dropout=c.dropout,
        embedding_dropout=c.dropout,
        attention_dropout=0.0,
        tie_word_embeddings=c.tie_embeddings,
        **special,
    )


FAMILIES = (
    Family(
        "modernbert",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="model.",
        labels=LABELS,
        duplicates={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        presets={
            "base": modernbert(
                d_model=768,
                n_layers=22,
                n_heads=12,
                d_ff=1152,
                vocab_size=50368,
                bos_token_id=50281,
                eos_token_ids=(50282,),
                pad_token_id=50283,
            ),
            "tiny": modernbert(
                d_model=64,
                n_layers=2,
                n_heads=4,
                d_ff=96,
                vocab_size=259,
                max_length=128,
                sliding_window=17,
                layer_pattern=("global", "local"),
            ),
        },
    ),
)
