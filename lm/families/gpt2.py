"""GPT-2 (Radford et al. 2019): learned positions, pre-norm, tied embeddings."""

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
from lm.families.table import VECTOR, conv1d, norm, row, table
from lm.models.config import ModelConfig

ARCHITECTURES = {"GPT2LMHeadModel": "causal_lm", "GPT2Model": "none"}
QKV = "layers/attention/query layers/attention/key layers/attention/value"
QKV_BIAS = "layers/attention/query_bias layers/attention/key_bias layers/attention/value_bias"

WEIGHTS = table(  # the matrices are Conv1D: [in, out]
    row("embeddings/token", "transformer.wte.weight"),
    row("embeddings/position", "transformer.wpe.weight"),
    norm("layers/attention_norm", "transformer.h.{i}.ln_1"),
    row(QKV, "transformer.h.{i}.attn.c_attn.weight", conv1d(), axis=1),
    row(QKV_BIAS, "transformer.h.{i}.attn.c_attn.bias", VECTOR),
    row("layers/attention/out", "transformer.h.{i}.attn.c_proj.weight", conv1d(inputs=2)),
    row("layers/attention/out_bias", "transformer.h.{i}.attn.c_proj.bias"),
    norm("layers/mlp_norm", "transformer.h.{i}.ln_2"),
    row("layers/mlp/up", "transformer.h.{i}.mlp.c_fc.weight", conv1d()),
    row("layers/mlp/up_bias", "transformer.h.{i}.mlp.c_fc.bias"),
    row("layers/mlp/down", "transformer.h.{i}.mlp.c_proj.weight", conv1d()),
    row("layers/mlp/down_bias", "transformer.h.{i}.mlp.c_proj.bias"),
    norm("final_norm", "transformer.ln_f"),
    row("head/table", "lm_head.weight"),
)


def gpt2(
    *, d_model: int, n_layers: int, n_heads: int, vocab_size: int, max_length: int, **changes
) -> ModelConfig:
    """Config of a GPT-2 of any size; `changes` are further fields of ModelConfig."""
    fields: dict[str, Any] = dict(
        family="gpt2",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=4 * d_model,
        max_length=max_length,
        positions="learned",
        norm="layernorm",
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )
    return ModelConfig(**fields | changes)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    expect(
        hf,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    d_model = value(hf, "n_embd")
    return gpt2(
        d_model=d_model,
        n_layers=value(hf, "n_layer"),
        n_heads=value(hf, "n_head"),
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "n_positions"),
        d_ff=hf.get("n_inner") or 4 * d_model,
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        activation=activation(hf, "activation_function", "gelu_new"),
        initializer_range=hf.get("initializer_range", 0.02),
        dropout=hf.get("resid_pdrop", 0.1),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        head=head(hf, ARCHITECTURES),
        **special_tokens(hf),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return dict(
        n_embd=c.d_model,
        n_layer=c.n_layers,
        n_head=c.n_heads,
        n_positions=c.max_length,
        n_ctx=c.max_length,
        n_inner=None if c.d_ff == 4 * c.d_model else c.d_ff,
        vocab_size=c.vocab_size,
        layer_norm_epsilon=c.norm_eps,
        activation_function="gelu_new"
        if c.activation == "gelu_tanh"
        else their_activation(c.activation),
        initializer_range=c.initializer_range,
        resid_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        attn_pdrop=0.0,
        tie_word_embeddings=c.tie_embeddings,
        **special_tokens_to_hf(c),
    )


def published(d_model: int, n_layers: int, n_heads: int) -> ModelConfig:
    return gpt2(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        vocab_size=50257,
        max_length=1024,
        bos_token_id=50256,
        eos_token_ids=(50256,),
    )


FAMILIES = (
    Family(
        "gpt2",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="transformer.",
        ignored=(r".*\.attn\.(bias|masked_bias)",),
        duplicates={"lm_head.weight": "transformer.wte.weight"},
        labels=heads.of_decoder("GPT2"),
        presets={
            "124m": published(768, 12, 12),
            "355m": published(1024, 24, 16),
            "774m": published(1280, 36, 20),
            "1.5b": published(1600, 48, 25),
            "tiny": gpt2(d_model=64, n_layers=2, n_heads=4, vocab_size=259, max_length=128),
        },
    ),
)
