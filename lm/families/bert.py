"""BERT (Devlin et al. 2019): bidirectional, post-norm, with token types.

Loads as an encoder or with its masked-LM head.
"""

from collections.abc import Collection, Mapping
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
from lm.families.table import Row, dense, linear, norm, row, table
from lm.models.config import ModelConfig

ARCHITECTURES = {"BertForMaskedLM": "masked_lm", "BertModel": "none"}


def encoder(prefix: str) -> list[Row]:
    """Rows of a BERT encoder and its pooler, whose Hugging Face names begin with `prefix`."""
    layer = prefix + "encoder.layer.{i}."
    return [
        row("embeddings/token", prefix + "embeddings.word_embeddings.weight"),
        row("embeddings/position", prefix + "embeddings.position_embeddings.weight"),
        row("embeddings/type", prefix + "embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", prefix + "embeddings.LayerNorm"),
        *dense("layers/attention/query", layer + "attention.self.query"),
        *dense("layers/attention/key", layer + "attention.self.key"),
        *dense("layers/attention/value", layer + "attention.self.value"),
        *dense("layers/attention/out", layer + "attention.output.dense", inputs=2),
        *norm("layers/attention_norm", layer + "attention.output.LayerNorm"),
        *dense("layers/mlp/up", layer + "intermediate.dense"),
        *dense("layers/mlp/down", layer + "output.dense"),
        *norm("layers/mlp_norm", layer + "output.LayerNorm"),
        row("pooler/kernel", prefix + "pooler.dense.weight", linear()),
        row("pooler/bias", prefix + "pooler.dense.bias"),
    ]


WEIGHTS = table(
    encoder("bert."),
    dense("head/dense", "cls.predictions.transform.dense"),
    norm("head/norm", "cls.predictions.transform.LayerNorm"),
    row("head/bias", "cls.predictions.bias"),
    row("head/table", "cls.predictions.decoder.weight"),
)


def bert(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    vocab_size: int,
    max_length: int = 512,
    **changes,
) -> ModelConfig:
    """Config of a BERT of any size; `changes` are further fields of ModelConfig."""
    fields: dict[str, Any] = dict(
        family="bert",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        d_ff=d_ff,
        max_length=max_length,
        causal=False,
        positions="learned",
        norm="layernorm",
        norm_eps=1e-12,
        norm_placement="post",
        activation="gelu",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        type_vocab_size=2,
        embedding_norm=True,
        final_norm=False,
        head="masked_lm",
    )
    return ModelConfig(**fields | changes)


def fields(hf: dict, architectures: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `bert` whose config.json fields are the same in every encoder of its shape.

    An encoder without a head is assumed to have a pooler.
    """
    expect(hf, is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    kind = head(hf, architectures)
    return dict(
        d_model=value(hf, "hidden_size"),
        n_layers=value(hf, "num_hidden_layers"),
        n_heads=value(hf, "num_attention_heads"),
        d_ff=value(hf, "intermediate_size"),
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "max_position_embeddings"),
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        type_vocab_size=hf.get("type_vocab_size", 2),
        activation=activation(hf, "hidden_act", "gelu"),
        initializer_range=hf.get("initializer_range", 0.02),
        dropout=hf.get("hidden_dropout_prob", 0.1),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        head=kind,
        pooler=kind == "none",
        **special_tokens(hf),
    )


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig; `with_pooler` later corrects `pooler`."""
    return bert(**fields(hf, ARCHITECTURES))


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return dict(
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        intermediate_size=c.d_ff,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_length,
        layer_norm_eps=c.norm_eps,
        type_vocab_size=c.type_vocab_size,
        hidden_act="gelu_new" if c.activation == "gelu_tanh" else their_activation(c.activation),
        initializer_range=c.initializer_range,
        hidden_dropout_prob=c.dropout,
        attention_probs_dropout_prob=0.0,
        tie_word_embeddings=c.tie_embeddings,
        **special_tokens_to_hf(c),
    )


def with_pooler(c: ModelConfig, names: Collection[str]) -> ModelConfig:
    """Set `pooler` from the tensor names, because config.json does not say whether there is one."""
    stored = any(name.endswith(("pooler.dense.weight", "pooler.weight")) for name in names)
    return c.replace(pooler=stored) if c.head in ("none", "embedding") else c


FAMILIES = (
    Family(
        "bert",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="bert.",
        refine=with_pooler,
        labels=heads.of_encoder("Bert"),
        renames={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
        # Masked-LM checkpoints often hold the pooler and the next-sentence head of pretraining.
        ignored=(
            r".*embeddings\.position_ids",
            r"(bert\.)?pooler\..*",
            r"cls\.seq_relationship\..*",
        ),
        duplicates={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        presets={
            "base": bert(
                d_model=768, n_layers=12, n_heads=12, d_ff=3072, vocab_size=30522, pad_token_id=0
            ),
            "minilm": bert(
                d_model=384,
                n_layers=6,
                n_heads=12,
                d_ff=1536,
                vocab_size=30522,
                pad_token_id=0,
                head="none",
                pooler=True,
            ),
            "tiny": bert(
                d_model=64, n_layers=2, n_heads=4, d_ff=128, vocab_size=259, max_length=128
            ),
        },
    ),
)
