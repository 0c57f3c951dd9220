"""GPT-NeoX (Black et al. 2022) and Pythia: parallel residual, partial rotary, biases."""

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
from lm.families.rotary import rope, rope_to_hf
from lm.families.table import dense, norm, per_head, row, table
from lm.models.config import ModelConfig

ARCHITECTURES = {"GPTNeoXForCausalLM": "causal_lm", "GPTNeoXModel": "none"}
LAYER = "gpt_neox.layers.{i}."

WEIGHTS = table(
    row("embeddings/token", "gpt_neox.embed_in.weight"),
    norm("layers/attention_norm", LAYER + "input_layernorm"),
    row(QKV, LAYER + "attention.query_key_value.weight", per_head(), axis=1, fold=3),
    row(QKV_BIAS, LAYER + "attention.query_key_value.bias", per_head(inputs=0), axis=1, fold=3),
    dense("layers/attention/out", LAYER + "attention.dense", inputs=2),
    norm("layers/mlp_norm", LAYER + "post_attention_layernorm"),
    dense("layers/mlp/up", LAYER + "mlp.dense_h_to_4h"),
    dense("layers/mlp/down", LAYER + "mlp.dense_4h_to_h"),
    norm("final_norm", "gpt_neox.final_layer_norm"),
    row("head/table", "embed_out.weight"),
)


def gpt_neox(
    *, d_model: int, n_layers: int, n_heads: int, vocab_size: int, max_length: int = 2048, **changes
) -> ModelConfig:
    """Config of a GPT-NeoX of any size; `changes` are further fields of ModelConfig."""
    fields: dict[str, Any] = dict(
        family="gpt_neox",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=4 * d_model,
        max_length=max_length,
        rotary_fraction=0.25,
        norm="layernorm",
        activation="gelu",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        parallel_residual=True,
        tie_embeddings=False,
    )
    return ModelConfig(**fields | changes)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    expect(hf, is_decoder=False)
    older = {"rope_theta": hf.get("rotary_emb_base"), "partial_rotary_factor": hf.get("rotary_pct")}
    bias = hf.get("attention_bias", True)
    return gpt_neox(
        d_model=value(hf, "hidden_size"),
        n_layers=value(hf, "num_hidden_layers"),
        n_heads=value(hf, "num_attention_heads"),
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "max_position_embeddings"),
        d_ff=value(hf, "intermediate_size"),
        norm_eps=hf.get("layer_norm_eps", 1e-5),
        activation=activation(hf, "hidden_act", "gelu"),
        qkv_bias=bias,
        out_bias=bias,
        parallel_residual=hf.get("use_parallel_residual", True),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        initializer_range=hf.get("initializer_range", 0.02),
        dropout=hf.get("hidden_dropout", 0.0),
        head=head(hf, ARCHITECTURES),
        **rope(older | hf, fraction=0.25),
        **special_tokens(hf),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    rotary = rope_to_hf(c)
    return dict(
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_length,
        intermediate_size=c.d_ff,
        layer_norm_eps=c.norm_eps,
        hidden_act=their_activation(c.activation),
        attention_bias=c.qkv_bias,
        use_parallel_residual=c.parallel_residual,
        rotary_emb_base=rotary["rope_theta"],
        rotary_pct=c.rotary_fraction,
        rope_scaling=rotary["rope_scaling"],
        tie_word_embeddings=c.tie_embeddings,
        initializer_range=c.initializer_range,
        hidden_dropout=c.dropout,
        attention_dropout=0.0,
        **special_tokens_to_hf(c),
    )


def pythia(d_model: int, n_layers: int, n_heads: int) -> ModelConfig:
    return gpt_neox(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        vocab_size=50304,
        bos_token_id=0,
        eos_token_ids=(0,),
    )


FAMILIES = (
    Family(
        "gpt_neox",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="gpt_neox.",
        ignored=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
        duplicates={"embed_out.weight": "gpt_neox.embed_in.weight"},
        labels=heads.of_decoder("GPTNeoX"),
        presets={
            "pythia_70m": pythia(512, 6, 8),
            "pythia_160m": pythia(768, 12, 12),
            "pythia_410m": pythia(1024, 24, 16),
            "tiny": gpt_neox(
                d_model=64,
                n_layers=2,
                n_heads=4,
                vocab_size=259,
                max_length=128,
                rotary_fraction=0.5,
            ),
        },
    ),
)
