"""OLMo 2 (OLMo Team 2025): Llama with norms on the mixers' outputs and q/k projections."""

from lm.families import llama
from lm.families.table import norm, table
from lm.models.config import ModelConfig

WEIGHTS = table(
    *(r for r in llama.WEIGHTS if "layernorm" not in r.theirs),
    norm("layers/attention_norm", "model.layers.{i}.post_attention_layernorm"),
    norm("layers/mlp_norm", "model.layers.{i}.post_feedforward_layernorm"),
)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    bias = bool(hf.get("attention_bias"))
    common = llama.fields({"rms_norm_eps": 1e-5} | hf)
    return ModelConfig(
        **common, norm_placement="output", qk_norm="projection", qkv_bias=bias, out_bias=bias
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return llama.fields_to_hf(c) | dict(attention_bias=c.qkv_bias)


TINY = llama.TINY.replace(
    family="olmo2", norm_placement="output", qk_norm="projection", tie_embeddings=False
)
FAMILIES = (llama.family("olmo2", {"tiny": TINY}, config_from_hf, config_to_hf, WEIGHTS),)
