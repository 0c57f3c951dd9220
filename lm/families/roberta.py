"""RoBERTa (Liu et al. 2019): BERT with positions counted from the row after the padding id."""

from typing import Any

from lm.families import bert, heads
from lm.families.family import Family, value
from lm.families.table import dense, norm, row, table
from lm.models.config import ConfigError, ModelConfig

ARCHITECTURES = {"RobertaForMaskedLM": "masked_lm", "RobertaModel": "none"}

WEIGHTS = table(
    bert.encoder("roberta."),
    dense("head/dense", "lm_head.dense"),
    norm("head/norm", "lm_head.layer_norm"),
    row("head/bias", "lm_head.bias"),
    row("head/table", "lm_head.decoder.weight"),
)


def roberta(
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    d_ff: int,
    vocab_size: int,
    max_length: int = 512,
    **changes,
) -> ModelConfig:
    """Config of a RoBERTa of any size; `changes` are further fields of ModelConfig."""
    shape = dict(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_length=max_length,
    )
    own: dict[str, Any] = dict(
        family="roberta",
        norm_eps=1e-5,
        type_vocab_size=1,
        pad_token_id=1,
        position_offset=2,
        head_activation="gelu",
    )
    return bert.bert(**shape, **own | changes)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig.

    Of the `max_position_embeddings` rows, those up to the padding token's id hold no position.
    """
    pad = hf.get("pad_token_id", 1)
    if not isinstance(pad, int) or pad < 0:
        raise ConfigError(
            f"pad_token_id={pad!r}: positions of a 'roberta' model begin after it; "
            "expected a token id"
        )
    length = value(hf, "max_position_embeddings") - pad - 1
    return roberta(
        **bert.fields(hf, ARCHITECTURES) | dict(max_length=length, position_offset=pad + 1)
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return bert.config_to_hf(c) | dict(max_position_embeddings=c.max_length + c.position_offset)


FAMILIES = (
    Family(
        "roberta",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="roberta.",
        refine=bert.with_pooler,
        renames={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
        labels=heads.of_encoder(
            "Roberta",
            dense_layer="classifier.dense",
            classifier="classifier.out_proj",
            head_dense="tanh",
        ),
        ignored=(r".*embeddings\.position_ids", r"(roberta\.)?pooler\..*"),
        duplicates={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        presets={
            "base": roberta(
                d_model=768,
                n_layers=12,
                n_heads=12,
                d_ff=3072,
                vocab_size=50265,
                bos_token_id=0,
                eos_token_ids=(2,),
            ),
            "tiny": roberta(
                d_model=64, n_layers=2, n_heads=4, d_ff=128, vocab_size=259, max_length=128
            ),
        },
    ),
)
