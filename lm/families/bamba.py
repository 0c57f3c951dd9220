"""Bamba (IBM, Princeton, CMU & UIUC 2024): a hybrid of Mamba-2 and attention layers.

A gated MLP follows each of them.
"""

from lm.families import mamba
from lm.families.family import (
    Family,
    activation,
    head,
    special_tokens,
    special_tokens_to_hf,
    their_activation,
    value,
)
from lm.families.rotary import rope, rope_to_hf
from lm.families.table import dense, norm, row, table
from lm.models.config import ConfigError, ModelConfig

LAYER = "model.layers.{i}"
WEIGHTS = table(
    row("embeddings/token", "model.embed_tokens.weight"),
    norm("layers/attention_norm", f"{LAYER}.input_layernorm"),
    norm("layers/ssm_norm", f"{LAYER}.input_layernorm"),
    dense("layers/attention/query", f"{LAYER}.self_attn.q_proj"),
    dense("layers/attention/key", f"{LAYER}.self_attn.k_proj"),
    dense("layers/attention/value", f"{LAYER}.self_attn.v_proj"),
    dense("layers/attention/out", f"{LAYER}.self_attn.o_proj", inputs=2),
    mamba.mixer2(f"{LAYER}.mamba"),
    norm("layers/mlp_norm", f"{LAYER}.pre_ff_layernorm"),
    dense("layers/mlp/gate", f"{LAYER}.feed_forward.gate_proj"),
    dense("layers/mlp/up", f"{LAYER}.feed_forward.up_proj"),
    dense("layers/mlp/down", f"{LAYER}.feed_forward.down_proj"),
    norm("final_norm", "model.final_layernorm"),
    row("head/table", "lm_head.weight"),
)
ARCHITECTURES = mamba.architectures("Bamba")


def pattern(attention: list[int] | None, n_layers: int) -> tuple[str, ...]:
    """Shortest repeating pattern of layer kinds, given the indices of the attention layers.

    () if there are none.
    """
    kinds = tuple("global" if i in (attention or ()) else "ssm" for i in range(n_layers))
    period = next(
        n for n in range(1, n_layers + 1) if all(kinds[i] == kinds[i % n] for i in range(n_layers))
    )
    return kinds[:period] if "global" in kinds else ()


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    layers, d_model, n_heads = (
        value(hf, name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    outside = [i for i in hf.get("attn_layer_indices") or () if i not in range(layers)]
    if outside:
        raise ConfigError(
            f"attn_layer_indices has {outside}; layers are counted from 0 to {layers - 1}"
        )
    kinds = pattern(hf.get("attn_layer_indices"), layers)
    if kinds == ("global",):
        raise ConfigError(
            "attn_layer_indices names every layer: without Mamba layers it is a model of type "
            "'llama'"
        )
    ssm_heads, inner = hf.get("mamba_n_heads", 128), int(hf.get("mamba_expand", 2) * d_model)
    head_dim, bias = hf.get("mamba_d_head", "auto"), bool(hf.get("attention_bias"))
    return ModelConfig(
        family="bamba",
        vocab_size=value(hf, "vocab_size"),
        d_model=d_model,
        n_layers=layers,
        n_heads=n_heads,
        n_kv_heads=hf.get("num_key_value_heads", 8) or n_heads,
        head_dim=hf.get("head_dim") or d_model // n_heads,
        d_ff=value(hf, "intermediate_size"),
        max_length=hf.get("max_position_embeddings", 262_144),
        layer_pattern=kinds,
        norm_eps=hf.get("rms_norm_eps", 1e-5),
        activation=activation(hf, "hidden_act", "silu"),
        head=head(hf, ARCHITECTURES),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        initializer_range=hf.get("initializer_range", 0.02),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bool(hf.get("mlp_bias")),
        ssm_inner=inner,
        ssm_heads=ssm_heads,
        ssm_head_dim=inner // ssm_heads if head_dim == "auto" else head_dim,
        ssm_groups=hf.get("mamba_n_groups", 1),
        ssm_state=hf.get("mamba_d_state", 256),
        ssm_conv=hf.get("mamba_d_conv", 4),
        ssm_conv_bias=hf.get("mamba_conv_bias", True),
        ssm_bias=hf.get("mamba_proj_bias", False),
        ssm_dt_limit=mamba.time_step_limit(hf),
        # transformers ignores a factor outside rope_parameters
        **rope(hf | {"partial_rotary_factor": None}, fraction=0.5),
        **special_tokens(hf),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    positions = (
        {"rope_type": "default"}
        | (rope_to_hf(c)["rope_scaling"] or {})
        | {"partial_rotary_factor": c.rotary_fraction}
    )
    return dict(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        intermediate_size=c.d_ff,
        max_position_embeddings=c.max_length,
        attn_layer_indices=[i for i, kind in enumerate(c.layer_kinds) if kind != "ssm"],
        rms_norm_eps=c.norm_eps,
        hidden_act=their_activation(c.activation),
        tie_word_embeddings=c.tie_embeddings,
        initializer_range=c.initializer_range,
        attention_bias=c.qkv_bias,
        mlp_bias=c.mlp_bias,
        mamba_expand=c.ssm_inner // c.d_model,
        mamba_n_heads=c.ssm_heads,
        mamba_d_head=c.ssm_head_dim,
        mamba_n_groups=c.ssm_groups,
        mamba_d_state=c.ssm_state,
        mamba_d_conv=c.ssm_conv,
        mamba_conv_bias=c.ssm_conv_bias,
        mamba_proj_bias=c.ssm_bias,
        rope_theta=c.rope_theta,
        rope_parameters=positions | {"rope_theta": c.rope_theta},
        **mamba.time_step_limit_to_hf(c),
        **special_tokens_to_hf(c),
    )


TINY = mamba.TINY_2.replace(
    family="bamba",
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=128,
    max_length=256,
    positions="rotary",
    rotary_fraction=0.5,
    layer_pattern=("ssm", "global"),
    initializer_range=0.02,
    tie_embeddings=False,
)
BAMBA_9B = TINY.replace(
    vocab_size=128256,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    d_ff=14336,
    max_length=4096,
    layer_pattern=pattern([9, 18, 27], 32),
    ssm_inner=8192,
    ssm_heads=128,
    ssm_head_dim=64,
    ssm_groups=1,
    ssm_state=128,
    bos_token_id=128000,
    eos_token_ids=(128001,),
)

FAMILIES = (
    Family(
        "bamba",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        {"9b": BAMBA_9B, "tiny": TINY},
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
        duplicates={"lm_head.weight": "model.embed_tokens.weight"},
    ),
)
