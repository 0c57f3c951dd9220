"""StarCoder2 (Lozhkov et al. 2024): Llama with LayerNorms, biases and an ungated MLP."""

from lm.families import llama
from lm.families.rotary import windows
from lm.families.table import Row, dense
from lm.models.config import ModelConfig

OTHERS = tuple(row for row in llama.WEIGHTS if not row.ours[0].startswith("layers/mlp/"))
WEIGHTS: tuple[Row, ...] = (
    *OTHERS,
    *dense("layers/mlp/up", "model.layers.{i}.mlp.c_fc"),
    *dense("layers/mlp/down", "model.layers.{i}.mlp.c_proj"),
)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    names = dict(
        rms_norm_eps=hf.get("norm_epsilon", 1e-5),
        tie_word_embeddings=hf.get("tie_word_embeddings", True),
    )
    common = llama.fields(hf | names, kv_heads=2, act=("hidden_act", "gelu_pytorch_tanh"))
    window = windows(
        {**hf, "layer_types": None},
        hf.get("sliding_window"),
        ["sliding_attention"] * common["n_layers"],
    )
    bias = hf.get("use_bias", True)
    return ModelConfig(
        **common,
        **window,
        norm="layernorm",
        gated_mlp=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    own = dict(
        norm_epsilon=c.norm_eps, sliding_window=c.sliding_window or None, use_bias=c.mlp_bias
    )
    return {name: x for name, x in llama.fields_to_hf(c).items() if name != "rms_norm_eps"} | own


BIASED = dict(
    norm="layernorm",
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    activation="gelu_tanh",
)
TINY = llama.TINY.replace(family="starcoder2", sliding_window=32, **BIASED)
FAMILIES = (llama.family("starcoder2", {"tiny": TINY}, config_from_hf, config_to_hf, WEIGHTS),)
