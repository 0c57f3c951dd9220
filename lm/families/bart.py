"""BART (Lewis et al. 2020), an encoder-decoder with learned positions and post-norm.

mBART (Liu et al. 2020) is the same with pre-norm.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.families import heads
from lm.families.family import (
    Family,
    activation,
    expect,
    head,
    seq2seq_tokens,
    special_tokens_to_hf,
    their_activation,
    value,
)
from lm.families.table import VECTOR, Row, Rule, dense, norm, row, table
from lm.models.config import ModelConfig


def attention(ours: str, theirs: str) -> list[Row]:
    """Rows of the four projections of an attention layer."""
    parts = [
        dense(f"{ours}/{name}", f"{theirs}.{name[0]}_proj") for name in ("query", "key", "value")
    ]
    return [r for part in parts for r in part] + dense(
        f"{ours}/out", f"{theirs}.out_proj", inputs=2
    )


def side(ours: str, theirs: str) -> list[Row]:
    """Rows of an encoder, or of a decoder without its cross-attention."""
    layer = theirs + "layers.{i}."
    return [
        row(ours + "embeddings/position", theirs + "embed_positions.weight"),
        *norm(ours + "embeddings/norm", theirs + "layernorm_embedding"),
        *norm(ours + "layers/attention_norm", layer + "self_attn_layer_norm"),
        *attention(ours + "layers/attention", layer + "self_attn"),
        *norm(ours + "layers/mlp_norm", layer + "final_layer_norm"),
        *dense(ours + "layers/mlp/up", layer + "fc1"),
        *dense(ours + "layers/mlp/down", layer + "fc2"),
        *norm(ours + "final_norm", theirs + "layer_norm"),
    ]


WEIGHTS = table(
    row("embeddings/token", "model.shared.weight"),
    side("encoder/", "model.encoder."),
    side("", "model.decoder."),
    norm("layers/cross_norm", "model.decoder.layers.{i}.encoder_attn_layer_norm"),
    attention("layers/cross", "model.decoder.layers.{i}.encoder_attn"),
    row("head/table", "lm_head.weight"),
    row("head/bias", "final_logits_bias", Rule(VECTOR.to_ours, lambda array: array.reshape(1, -1))),
)


def bart(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    vocab_size: int,
    max_length: int = 1024,
    **changes,
) -> ModelConfig:
    """Config of a BART of any size; `changes` are further fields of ModelConfig.

    The encoder has as many layers as the decoder unless `encoder_layers` is given.
    """
    fields: dict[str, Any] = dict(
        family="bart",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        encoder_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=d_ff,
        max_length=max_length,
        positions="learned",
        position_offset=2,
        norm="layernorm",
        norm_placement="post",
        activation="gelu",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        embedding_norm=True,
        final_norm=False,
        head="seq2seq_lm",
        head_bias=True,
        bos_token_id=0,
        eos_token_ids=(2,),
        pad_token_id=1,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    return ModelConfig(**fields | changes)


def mbart(**changes) -> ModelConfig:
    """Config of an mBART of any size; takes the arguments of `bart`."""
    own: dict[str, Any] = dict(
        family="mbart",
        norm_placement="pre",
        final_norm=True,
        scale_embeddings=True,
        decoder_start_token_id=None,
    )
    return bart(**own | changes)


def fields(hf: dict, architectures: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `bart` whose config.json fields are the same in every family of its shape."""
    expect(hf, is_encoder_decoder=True, is_decoder=False)
    heads, d_ff = value(hf, "decoder_attention_heads"), value(hf, "decoder_ffn_dim")
    encoder_heads, encoder_d_ff = value(hf, "encoder_attention_heads"), value(hf, "encoder_ffn_dim")
    kind = head(hf, architectures)
    return dict(
        d_model=value(hf, "d_model"),
        n_layers=value(hf, "decoder_layers"),
        encoder_layers=value(hf, "encoder_layers"),
        n_heads=heads,
        encoder_heads=0 if encoder_heads == heads else encoder_heads,
        d_ff=d_ff,
        encoder_d_ff=0 if encoder_d_ff == d_ff else encoder_d_ff,
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "max_position_embeddings"),
        activation=activation(hf, "activation_function", "gelu"),
        scale_embeddings=bool(hf.get("scale_embedding")),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        initializer_range=hf.get("init_std", 0.02),
        dropout=hf.get("dropout", 0.1),
        head=kind,
        head_bias=kind == "seq2seq_lm",
        **seq2seq_tokens(hf),
    )


def bart_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    expect(
        hf,
        normalize_before=False,
        add_final_layer_norm=False,
        normalize_embedding=True,
        static_position_embeddings=False,
    )
    return bart(**fields({"forced_eos_token_id": 2, "decoder_start_token_id": 2} | hf, BART))


def mbart_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    expect(
        hf,
        normalize_before=True,
        add_final_layer_norm=True,
        normalize_embedding=True,
        static_position_embeddings=False,
    )
    return mbart(**fields({"forced_eos_token_id": 2} | hf, MBART))


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return dict(
        d_model=c.d_model,
        decoder_layers=c.n_layers,
        encoder_layers=c.encoder_layers,
        num_hidden_layers=c.encoder_layers,
        decoder_attention_heads=c.n_heads,
        encoder_attention_heads=c.encoder_heads or c.n_heads,
        decoder_ffn_dim=c.d_ff,
        encoder_ffn_dim=c.encoder_d_ff or c.d_ff,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_length,
        activation_function=their_activation(c.activation),
        scale_embedding=c.scale_embeddings,
        tie_word_embeddings=c.tie_embeddings,
        init_std=c.initializer_range,
        dropout=c.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        is_encoder_decoder=True,
        **special_tokens_to_hf(c),
    )


BART = {"BartForConditionalGeneration": "seq2seq_lm", "BartModel": "none"}
MBART = {"MBartForConditionalGeneration": "seq2seq_lm", "MBartModel": "none"}

FAMILY = Family(
    "bart",
    BART,
    WEIGHTS,
    bart_from_hf,
    config_to_hf,
    prefix="model.",
    labels=heads.of_encoder_decoder("Bart"),
    ignored=(r"(model\.)?(en|de)coder\.version",),
    duplicates={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    },
    presets={
        "base": bart(d_model=768, n_layers=6, n_heads=12, d_ff=3072, vocab_size=50265),
        "large": bart(d_model=1024, n_layers=12, n_heads=16, d_ff=4096, vocab_size=50265),
        "tiny": bart(d_model=64, n_layers=2, n_heads=4, d_ff=128, vocab_size=259, max_length=128),
    },
)

FAMILIES = (
    FAMILY,
    dataclasses.replace(
        FAMILY,
        model_type="mbart",
        architectures=MBART,
        labels=heads.of_encoder_decoder("MBart"),
        config_from_hf=mbart_from_hf,
        presets={
            "large_cc25": mbart(
                d_model=1024, n_layers=12, n_heads=16, d_ff=4096, vocab_size=250027
            ),
            "tiny": mbart(
                d_model=64,
                n_layers=2,
                n_heads=4,
                d_ff=128,
                vocab_size=259,
                max_length=128,
                decoder_start_token_id=2,
            ),
        },
    ),
)
