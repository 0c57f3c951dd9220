"""StableLM (Bellagente et al. 2024): Llama with LayerNorms and partial rotary positions."""

from lm.families import llama
from lm.families.family import expect
from lm.models.config import ModelConfig


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    expect(hf, use_parallel_residual=False, qk_layernorm=False)
    common = llama.fields(hf | dict(rms_norm_eps=hf.get("layer_norm_eps", 1e-5)), fraction=0.25)
    return ModelConfig(
        **common,
        norm="layernorm",
        qkv_bias=bool(hf.get("use_qkv_bias")),
        dropout=hf.get("hidden_dropout", 0.0),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    own = dict(
        layer_norm_eps=c.norm_eps,
        use_qkv_bias=c.qkv_bias,
        partial_rotary_factor=c.rotary_fraction,
        hidden_dropout=c.dropout,
    )
    return {
        name: x
        for name, x in llama.fields_to_hf(c).items()
        if name not in ("rms_norm_eps", "head_dim")
    } | own


TINY = llama.TINY.replace(
    family="stablelm", norm="layernorm", rotary_fraction=0.5, tie_embeddings=False
)
FAMILIES = (llama.family("stablelm", {"tiny": TINY}, config_from_hf, config_to_hf),)
