"""Gemma (Gemma Team 2024a): scaled embeddings, norm scales stored minus 1.

Gemma 2 (2024b) adds soft caps, alternating windows and norms on the mixers' outputs.
"""

from typing import Any

from lm.families import llama
from lm.families.family import expect, their_activation, value
from lm.families.rotary import layer_types, windows
from lm.families.table import norm, table
from lm.models.config import ModelConfig

WEIGHTS_2 = table(
    *(r for r in llama.WEIGHTS if "post_attention_layernorm" not in r.theirs),
    norm("layers/attention_out_norm", "model.layers.{i}.post_attention_layernorm"),
    norm("layers/mlp_norm", "model.layers.{i}.pre_feedforward_layernorm"),
    norm("layers/mlp_out_norm", "model.layers.{i}.post_feedforward_layernorm"),
)


def fields(hf: dict, act: str) -> dict[str, Any]:
    """Fields of ModelConfig that Gemma and Gemma 2 share; `act` names the activation field."""
    expect(hf, use_bidirectional_attention=False)
    bias = bool(hf.get("attention_bias"))
    common = llama.fields(
        {"head_dim": 256, "tie_word_embeddings": True, **hf}, act=(act, "gelu_pytorch_tanh")
    )
    return common | dict(norm_plus_one=True, scale_embeddings=True, qkv_bias=bias, out_bias=bias)


def fields_to_hf(c: ModelConfig) -> dict[str, Any]:
    """Inverse of `fields`, without the activation function."""
    return {name: x for name, x in llama.fields_to_hf(c).items() if name != "hidden_act"} | dict(
        attention_bias=c.qkv_bias
    )


def name_of(activation: str) -> str:
    return "gelu_pytorch_tanh" if activation == "gelu_tanh" else their_activation(activation)


def gemma_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig; "gelu" has always meant the tanh approximation here."""
    return ModelConfig(
        **fields(
            hf | {"hidden_act": None if hf.get("hidden_act") == "gelu" else hf.get("hidden_act")},
            "hidden_act",
        )
    )


def gemma_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return fields_to_hf(c) | dict(hidden_act=name_of(c.activation))


def gemma2_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig.

    Every other layer is windowed unless `layer_types` says otherwise.
    """
    alternating = (["sliding_attention", "full_attention"] * value(hf, "num_hidden_layers"))[
        : value(hf, "num_hidden_layers")
    ]
    common, scalar = fields(hf, "hidden_activation"), hf.get("query_pre_attn_scalar", 256)
    return ModelConfig(
        **common,
        **windows(hf, hf.get("sliding_window", 4096), alternating),
        norm_placement="sandwich",
        score_dim=0.0 if scalar == common["head_dim"] else float(scalar),
        attention_softcap=hf.get("attn_logit_softcapping", 50.0) or 0.0,
        logit_softcap=hf.get("final_logit_softcapping", 30.0) or 0.0,
    )


def gemma2_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    scalar = c.score_dim or c.head_dim
    return fields_to_hf(c) | dict(
        hidden_activation=name_of(c.activation),
        query_pre_attn_scalar=int(scalar) if scalar == int(scalar) else scalar,
        attn_logit_softcapping=c.attention_softcap or None,
        final_logit_softcapping=c.logit_softcap or None,
        sliding_window=c.sliding_window or None,
        layer_types=layer_types(c),
    )


def published(base: ModelConfig, **shape) -> ModelConfig:
    return base.replace(
        vocab_size=256_000,
        head_dim=256,
        max_length=8192,
        norm_eps=1e-6,
        bos_token_id=2,
        eos_token_ids=(1,),
        pad_token_id=0,
        **shape,
    )


TINY = llama.TINY.replace(
    family="gemma", activation="gelu_tanh", norm_plus_one=True, scale_embeddings=True
)
TINY_2 = TINY.replace(
    family="gemma2",
    norm_placement="sandwich",
    sliding_window=32,
    layer_pattern=("local", "global"),
    attention_softcap=50.0,
    logit_softcap=30.0,
)
FAMILIES = (
    llama.family(
        "gemma",
        {
            "2b": published(TINY, d_model=2048, n_layers=18, n_heads=8, n_kv_heads=1, d_ff=16384),
            "tiny": TINY,
        },
        gemma_from_hf,
        gemma_to_hf,
    ),
    llama.family(
        "gemma2",
        {
            "2b": published(
                TINY_2,
                d_model=2304,
                n_layers=26,
                n_heads=8,
                n_kv_heads=4,
                d_ff=9216,
                sliding_window=4096,
            ),
            "tiny": TINY_2,
        },
        gemma2_from_hf,
        gemma2_to_hf,
        WEIGHTS_2,
    ),
)
