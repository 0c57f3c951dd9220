"""DistilBERT (Sanh et al. 2019): BERT without token types and without a pooler."""

from typing import Any

from lm.families import bert, heads
from lm.families.family import (
    Family,
    activation,
    head,
    special_tokens,
    special_tokens_to_hf,
    their_activation,
    value,
)
from lm.families.table import dense, norm, row, table
from lm.models.config import ModelConfig

ARCHITECTURES = {"DistilBertForMaskedLM": "masked_lm", "DistilBertModel": "none"}
LAYER = "distilbert.transformer.layer.{i}."

WEIGHTS = table(
    row("embeddings/token", "distilbert.embeddings.word_embeddings.weight"),
    row("embeddings/position", "distilbert.embeddings.position_embeddings.weight"),
    norm("embeddings/norm", "distilbert.embeddings.LayerNorm"),
    dense("layers/attention/query", LAYER + "attention.q_lin"),
    dense("layers/attention/key", LAYER + "attention.k_lin"),
    dense("layers/attention/value", LAYER + "attention.v_lin"),
    dense("layers/attention/out", LAYER + "attention.out_lin", inputs=2),
    norm("layers/attention_norm", LAYER + "sa_layer_norm"),
    dense("layers/mlp/up", LAYER + "ffn.lin1"),
    dense("layers/mlp/down", LAYER + "ffn.lin2"),
    norm("layers/mlp_norm", LAYER + "output_layer_norm"),
    dense("head/dense", "vocab_transform"),
    norm("head/norm", "vocab_layer_norm"),
    row("head/bias", "vocab_projector.bias"),
    row("head/table", "vocab_projector.weight"),
)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig.

    Sinusoidal positions (`sinusoidal_pos_embds`) are stored as a table, so they are read as
    learned.
    """
    return bert.bert(
        family="distilbert",
        d_model=value(hf, "dim"),
        n_layers=value(hf, "n_layers"),
        n_heads=value(hf, "n_heads"),
        d_ff=value(hf, "hidden_dim"),
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "max_position_embeddings"),
        type_vocab_size=0,
        activation=activation(hf, "activation", "gelu"),
        initializer_range=hf.get("initializer_range", 0.02),
        dropout=hf.get("dropout", 0.1),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        head=head(hf, ARCHITECTURES),
        **special_tokens(hf),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return dict(
        dim=c.d_model,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        hidden_dim=c.d_ff,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_length,
        activation=their_activation(c.activation),
        initializer_range=c.initializer_range,
        dropout=c.dropout,
        attention_dropout=0.0,
        tie_word_embeddings=c.tie_embeddings,
        **special_tokens_to_hf(c),
    )


BASE: dict[str, Any] = dict(family="distilbert", type_vocab_size=0)
FAMILIES = (
    Family(
        "distilbert",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="distilbert.",
        labels=heads.of_encoder("DistilBert", dense_layer="pre_classifier", head_dense="relu"),
        ignored=(r".*embeddings\.position_ids",),
        duplicates={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        presets={
            "base": bert.bert(
                d_model=768,
                n_layers=6,
                n_heads=12,
                d_ff=3072,
                vocab_size=30522,
                pad_token_id=0,
                **BASE,
            ),
            "tiny": bert.bert(
                d_model=64, n_layers=2, n_heads=4, d_ff=128, vocab_size=259, max_length=128, **BASE
            ),
        },
    ),
)
