"""ELECTRA (Clark et al. 2020): BERT with narrower embeddings.

A generator has a masked-LM head. A discriminator tells which tokens were replaced.
"""

from typing import Any

from lm.families import bert, heads
from lm.families.family import Family, value
from lm.families.table import dense, norm, row, table
from lm.models.config import ModelConfig

ARCHITECTURES = {"ElectraForMaskedLM": "masked_lm", "ElectraModel": "none"}
DISCRIMINATOR = heads.label_head(
    "ElectraForPreTraining",
    "replaced_token_detection",
    "discriminator_predictions.dense_prediction",
    dense_layer="discriminator_predictions.dense",
    pooler=False,
    fields=lambda c: dict(head_dense=c.activation),
)

WEIGHTS = table(
    bert.encoder("electra."),
    dense("embeddings/projection", "electra.embeddings_project"),
    dense("head/dense", "generator_predictions.dense"),
    norm("head/norm", "generator_predictions.LayerNorm"),
    row("head/bias", "generator_lm_head.bias"),
    row("head/table", "generator_lm_head.weight"),
)


def electra(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    vocab_size: int,
    max_length: int = 512,
    **changes,
) -> ModelConfig:
    """Config of an ELECTRA of any size; `changes` are further fields of ModelConfig."""
    shape = dict(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_length=max_length,
    )
    own: dict[str, Any] = dict(family="electra", head_activation="gelu")
    return bert.bert(**shape, **own | changes)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig.

    Embeddings are projected only if their width differs from the model's.
    """
    width = hf.get("embedding_size", 128)
    own = dict(pooler=False, embedding_width=0 if width == value(hf, "hidden_size") else width)
    return electra(**bert.fields(hf, ARCHITECTURES) | own)


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return bert.config_to_hf(c) | dict(embedding_size=c.embedding_width or c.d_model)


FAMILIES = (
    Family(
        "electra",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="electra.",
        labels=(
            *heads.of_encoder(
                "Electra",
                dense_layer="classifier.dense",
                classifier="classifier.out_proj",
                head_dense="gelu",
            ),
            DISCRIMINATOR,
        ),
        ignored=(r".*embeddings\.position_ids", r"discriminator_predictions\..*"),
        duplicates={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        presets={
            "small": electra(
                d_model=256,
                n_layers=12,
                n_heads=4,
                d_ff=1024,
                vocab_size=30522,
                embedding_width=128,
                pad_token_id=0,
                head="none",
            ),
            "tiny": electra(
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
