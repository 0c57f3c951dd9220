"""Marian (Junczys-Dowmunt et al. 2018): the original Transformer (Vaswani et al. 2017).

An encoder-decoder with sinusoidal positions and post-norm.
"""

import dataclasses
from typing import Any

from lm.families import bart
from lm.families.family import expect, value
from lm.models.config import ModelConfig

ARCHITECTURES = {"MarianMTModel": "seq2seq_lm", "MarianModel": "none"}


def marian(**changes) -> ModelConfig:
    """Config of a Marian of any size; takes the arguments of `bart.bart`."""
    own: dict[str, Any] = dict(
        family="marian",
        max_length=512,
        positions="sinusoidal",
        position_offset=0,
        embedding_norm=False,
        scale_embeddings=True,
        eos_token_ids=(0,),
        forced_eos_token_id=0,
    )
    return bart.bart(**own | changes)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    expect(
        hf,
        normalize_before=False,
        add_final_layer_norm=False,
        normalize_embedding=False,
        static_position_embeddings=True,
    )
    expect(hf, share_encoder_decoder_embeddings=True, decoder_vocab_size=value(hf, "vocab_size"))
    return marian(**bart.fields({"forced_eos_token_id": 0} | hf, ARCHITECTURES))


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return bart.config_to_hf(c) | dict(
        share_encoder_decoder_embeddings=True, decoder_vocab_size=c.vocab_size
    )


FAMILIES = (
    dataclasses.replace(
        bart.FAMILY,
        model_type="marian",
        architectures=ARCHITECTURES,
        labels=(),
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        # files may hold the sinusoids
        ignored=(r"(model\.)?(en|de)coder\.embed_positions\.weight",),
        presets={
            # "base" is an OPUS-MT model (Tiedemann & Thottingal 2020), "transformer_base" is that
            # of Vaswani et al., table 3.
            "base": marian(
                d_model=512,
                n_layers=6,
                n_heads=8,
                d_ff=2048,
                vocab_size=58101,
                activation="silu",
                pad_token_id=58100,
                decoder_start_token_id=58100,
            ),
            "transformer_base": marian(
                d_model=512, n_layers=6, n_heads=8, d_ff=2048, vocab_size=37000, activation="relu"
            ),
            "tiny": marian(
                d_model=64,
                n_layers=2,
                n_heads=4,
                d_ff=128,
                vocab_size=259,
                max_length=128,
                activation="relu",
            ),
        },
    ),
)
