"""Phi-3 (Abdin et al. 2024): Llama with merged projections.

Phi-4-mini has rotary positions on part of each head.
"""

from lm.families import llama
from lm.families.gpt2 import QKV
from lm.families.rotary import windows
from lm.families.table import linear, row, table
from lm.models.config import ConfigError, ModelConfig

SPLIT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
WEIGHTS = table(
    *(r for r in llama.WEIGHTS if not any(name in r.theirs for name in SPLIT)),
    row(QKV, "model.layers.{i}.self_attn.qkv_proj.weight", linear()),
    row("layers/mlp/gate layers/mlp/up", "model.layers.{i}.mlp.gate_up_proj.weight", linear()),
)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig.

    Scaled rotary positions (`longrope`, the only kind that transformers has here) are refused.
    """
    window = windows(
        {**hf, "layer_types": None},
        hf.get("sliding_window"),
        ["sliding_attention"] * hf.get("num_hidden_layers", 0),
    )
    defaults = {"rms_norm_eps": 1e-5, "head_dim": None}
    common = llama.fields(defaults | hf, fraction=1.0)
    if common["rope_scaling"]:
        raise ConfigError(
            f"rope_scaling={dict(common['rope_scaling'])} is not supported for model_type 'phi3'; "
            "only the default is"
        )
    return ModelConfig(**common, **window, dropout=hf.get("resid_pdrop", 0.0))


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    hf = {name: x for name, x in llama.fields_to_hf(c).items() if name != "head_dim"}
    part = dict(partial_rotary_factor=c.rotary_fraction, sliding_window=c.sliding_window or None)
    return (
        hf
        | part
        | dict(
            resid_pdrop=c.dropout,
            embd_pdrop=0.0,
            attention_dropout=0.0,
            original_max_position_embeddings=c.max_length,
        )
    )


FAMILIES = (
    llama.family(
        "phi3",
        {
            "mini": llama.TINY.replace(
                family="phi3",
                vocab_size=32064,
                d_model=3072,
                n_layers=32,
                n_heads=32,
                n_kv_heads=32,
                head_dim=96,
                d_ff=8192,
                max_length=4096,
                sliding_window=2047,
                tie_embeddings=False,
                bos_token_id=1,
                eos_token_ids=(32000,),
                pad_token_id=32000,
            ),
            "tiny": llama.TINY.replace(family="phi3", tie_embeddings=False, rotary_fraction=0.5),
        },
        config_from_hf,
        config_to_hf,
        WEIGHTS,
    ),
)
