"""ALBERT (Lan et al. 2020): BERT with one layer's parameters shared by all layers.

Section 3.1 describes the sharing and the factorised (narrower) embeddings.
"""

from typing import Any

from lm.families import bert, heads
from lm.families.family import Family, expect
from lm.families.table import dense, linear, norm, row, table
from lm.models.config import ModelConfig

ARCHITECTURES = {"AlbertForMaskedLM": "masked_lm", "AlbertModel": "none"}
LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0."

WEIGHTS = table(
    row("embeddings/token", "albert.embeddings.word_embeddings.weight"),
    row("embeddings/position", "albert.embeddings.position_embeddings.weight"),
    row("embeddings/type", "albert.embeddings.token_type_embeddings.weight"),
    norm("embeddings/norm", "albert.embeddings.LayerNorm"),
    dense("embeddings/projection", "albert.encoder.embedding_hidden_mapping_in"),
    dense("layers/attention/query", LAYER + "attention.query"),
    dense("layers/attention/key", LAYER + "attention.key"),
    dense("layers/attention/value", LAYER + "attention.value"),
    dense("layers/attention/out", LAYER + "attention.dense", inputs=2),
    norm("layers/attention_norm", LAYER + "attention.LayerNorm"),
    dense("layers/mlp/up", LAYER + "ffn"),
    dense("layers/mlp/down", LAYER + "ffn_output"),
    norm("layers/mlp_norm", LAYER + "full_layer_layer_norm"),
    row("pooler/kernel", "albert.pooler.weight", linear()),
    row("pooler/bias", "albert.pooler.bias"),
    dense("head/dense", "predictions.dense"),
    norm("head/norm", "predictions.LayerNorm"),
    row("head/bias", "predictions.bias"),
    row("head/table", "predictions.decoder.weight"),
)


def albert(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    vocab_size: int,
    max_length: int = 512,
    **changes,
) -> ModelConfig:
    """Config of an ALBERT of any size; `changes` are further fields of ModelConfig."""
    shape = dict(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_length=max_length,
    )
    own: dict[str, Any] = dict(
        family="albert", shared_layers=True, embedding_width=128, activation="gelu_tanh"
    )
    return bert.bert(**shape, **own | changes)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig.

    Refuses several groups of layers: one layer's parameters must serve all layers.
    """
    expect(hf, num_hidden_groups=1, inner_group_num=1)
    common = bert.fields({"hidden_act": "gelu_new", "hidden_dropout_prob": 0.0} | hf, ARCHITECTURES)
    return albert(**common, embedding_width=hf.get("embedding_size", 128))


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return bert.config_to_hf(c) | dict(
        embedding_size=c.embedding_width, num_hidden_groups=1, inner_group_num=1
    )


FAMILIES = (
    Family(
        "albert",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="albert.",
        refine=bert.with_pooler,
        labels=heads.of_encoder("Albert"),
        ignored=(r".*embeddings\.position_ids", r"(albert\.)?pooler\..*", r"sop_classifier\..*"),
        duplicates={
            "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
            "predictions.decoder.bias": "predictions.bias",
        },
        presets={
            "base": albert(
                d_model=768,
                n_layers=12,
                n_heads=12,
                d_ff=3072,
                vocab_size=30000,
                bos_token_id=2,
                eos_token_ids=(3,),
                pad_token_id=0,
            ),
            "tiny": albert(
                d_model=64,
                n_layers=2,
                n_heads=4,
                d_ff=128,
                vocab_size=259,
                max_length=128,
                embedding_width=32,
            ),
        },
    ),
)
