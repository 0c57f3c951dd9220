"""OPT (Zhang et al. 2022): learned positions, ReLU, biases, pre-norm.

The 350M model is post-norm without a final norm.
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
from lm.families.table import dense, norm, row, table
from lm.models.config import ConfigError, ModelConfig

ARCHITECTURES = {"OPTForCausalLM": "causal_lm", "OPTModel": "none"}
LAYER = "model.decoder.layers.{i}."

WEIGHTS = table(
    row("embeddings/token", "model.decoder.embed_tokens.weight"),
    row("embeddings/position", "model.decoder.embed_positions.weight"),
    norm("layers/attention_norm", LAYER + "self_attn_layer_norm"),
    dense("layers/attention/query", LAYER + "self_attn.q_proj"),
    dense("layers/attention/key", LAYER + "self_attn.k_proj"),
    dense("layers/attention/value", LAYER + "self_attn.v_proj"),
    dense("layers/attention/out", LAYER + "self_attn.out_proj", inputs=2),
    norm("layers/mlp_norm", LAYER + "final_layer_norm"),
    dense("layers/mlp/up", LAYER + "fc1"),
    dense("layers/mlp/down", LAYER + "fc2"),
    norm("final_norm", "model.decoder.final_layer_norm"),
    row("head/table", "lm_head.weight"),
)


def opt(
    *, d_model: int, n_layers: int, n_heads: int, vocab_size: int, max_length: int, **changes
) -> ModelConfig:
    """Config of an OPT of any size; `changes` are further fields of ModelConfig."""
    fields: dict[str, Any] = dict(
        family="opt",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=4 * d_model,
        max_length=max_length,
        positions="learned",
        position_offset=2,
        norm="layernorm",
        activation="relu",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    )
    return ModelConfig(**fields | changes)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    expect(hf, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False)
    d_model, before, bias = (
        value(hf, "hidden_size"),
        hf.get("do_layer_norm_before", True),
        hf.get("enable_bias", True),
    )
    if hf.get("word_embed_proj_dim") not in (None, d_model):
        raise ConfigError(
            f"word_embed_proj_dim={hf['word_embed_proj_dim']} beside hidden_size={d_model} is not "
            "supported for model_type 'opt': its embeddings are projected in and out"
        )
    return opt(
        d_model=d_model,
        n_layers=value(hf, "num_hidden_layers"),
        n_heads=value(hf, "num_attention_heads"),
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "max_position_embeddings"),
        d_ff=value(hf, "ffn_dim"),
        norm_placement="pre" if before else "post",
        final_norm=before,
        activation=activation(hf, "activation_function", "relu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tie_embeddings=hf.get("tie_word_embeddings", True),
        initializer_range=hf.get("init_std", 0.02),
        dropout=hf.get("dropout", 0.1),
        head=head(hf, ARCHITECTURES),
        **special_tokens(hf),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return dict(
        hidden_size=c.d_model,
        word_embed_proj_dim=c.d_model,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_length,
        ffn_dim=c.d_ff,
        do_layer_norm_before=c.norm_placement == "pre",
        activation_function=their_activation(c.activation),
        enable_bias=c.mlp_bias,
        tie_word_embeddings=c.tie_embeddings,
        init_std=c.initializer_range,
        dropout=c.dropout,
        attention_dropout=0.0,
        **special_tokens_to_hf(c),
    )


FAMILIES = (
    Family(
        "opt",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="model.",
        duplicates={"lm_head.weight": "model.decoder.embed_tokens.weight"},
        labels=heads.of_decoder("OPT", tokens=""),
        presets={
            "125m": opt(
                d_model=768,
                n_layers=12,
                n_heads=12,
                vocab_size=50272,
                max_length=2048,
                bos_token_id=2,
                eos_token_ids=(2,),
                pad_token_id=1,
            ),
            "tiny": opt(d_model=64, n_layers=2, n_heads=4, vocab_size=259, max_length=128),
        },
    ),
)
