"""GPT-Neo (Black et al. 2021): GPT-2 with unscaled attention scores.

Layers alternate between global and windowed attention.
"""

from typing import Any

from lm.families import heads
from lm.families.family import (
    Family,
    activation,
    head,
    special_tokens,
    special_tokens_to_hf,
    their_activation,
    value,
)
from lm.families.gpt2 import gpt2
from lm.families.rotary import windows
from lm.families.table import dense, norm, row, table
from lm.models.config import ConfigError, ModelConfig

ARCHITECTURES = {"GPTNeoForCausalLM": "causal_lm", "GPTNeoModel": "none"}
LAYER = "transformer.h.{i}"
WEIGHTS = table(
    row("embeddings/token", "transformer.wte.weight"),
    row("embeddings/position", "transformer.wpe.weight"),
    norm("layers/attention_norm", f"{LAYER}.ln_1"),
    dense("layers/attention/query", f"{LAYER}.attn.attention.q_proj"),
    dense("layers/attention/key", f"{LAYER}.attn.attention.k_proj"),
    dense("layers/attention/value", f"{LAYER}.attn.attention.v_proj"),
    dense("layers/attention/out", f"{LAYER}.attn.attention.out_proj", inputs=2),
    norm("layers/mlp_norm", f"{LAYER}.ln_2"),
    dense("layers/mlp/up", f"{LAYER}.mlp.c_fc"),
    dense("layers/mlp/down", f"{LAYER}.mlp.c_proj"),
    norm("final_norm", "transformer.ln_f"),
    row("head/table", "lm_head.weight"),
)
THEIRS = {"global": "full_attention", "local": "sliding_attention"}  # names in `windows`


def gpt_neo(**sizes: Any) -> ModelConfig:
    """Config of a GPT-Neo of any size; takes the arguments of `gpt2`."""
    return gpt2(**sizes, family="gpt_neo", qkv_bias=False, score_dim=1.0)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    d_model, layers = value(hf, "hidden_size"), value(hf, "num_layers")
    groups: Any = hf.get("attention_types") or [[["global", "local"], layers // 2]]
    kinds = [kind for names, times in groups for _ in range(times) for kind in names]
    strange = sorted(set(kinds) - set(THEIRS))
    if strange or len(kinds) != layers:
        raise ConfigError(
            f"attention_types={groups} is not supported with num_layers={layers}: "
            "expected global or local, one for each"
        )
    named = dict(model_type="gpt_neo", num_hidden_layers=layers)
    return gpt_neo(
        d_model=d_model,
        n_layers=layers,
        n_heads=value(hf, "num_heads"),
        vocab_size=value(hf, "vocab_size"),
        max_length=value(hf, "max_position_embeddings"),
        d_ff=hf.get("intermediate_size") or 4 * d_model,
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        activation=activation(hf, "activation_function", "gelu_new"),
        initializer_range=hf.get("initializer_range", 0.02),
        dropout=hf.get("resid_dropout", 0.0),
        tie_embeddings=hf.get("tie_word_embeddings", True),
        head=head(hf, ARCHITECTURES),
        **windows(named, hf.get("window_size", 256), [THEIRS[kind] for kind in kinds]),
        **special_tokens(hf),
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return dict(
        hidden_size=c.d_model,
        num_layers=c.n_layers,
        num_heads=c.n_heads,
        max_position_embeddings=c.max_length,
        vocab_size=c.vocab_size,
        intermediate_size=None if c.d_ff == 4 * c.d_model else c.d_ff,
        window_size=c.sliding_window or 256,
        attention_types=[[list(c.layer_kinds), 1]],
        attention_layers=list(c.layer_kinds),
        layer_norm_epsilon=c.norm_eps,
        activation_function="gelu_new"
        if c.activation == "gelu_tanh"
        else their_activation(c.activation),
        initializer_range=c.initializer_range,
        resid_dropout=c.dropout,
        embed_dropout=c.dropout,
        attention_dropout=0.0,
        tie_word_embeddings=c.tie_embeddings,
        **special_tokens_to_hf(c),
    )


def alternating(d_model: int, n_layers: int, n_heads: int, **changes) -> ModelConfig:
    """Config with the published pattern: every other layer is windowed."""
    published: dict[str, Any] = dict(
        vocab_size=50257,
        max_length=2048,
        sliding_window=256,
        bos_token_id=50256,
        eos_token_ids=(50256,),
    )
    return gpt_neo(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        layer_pattern=("global", "local"),
        **published | changes,
    )


FAMILIES = (
    Family(
        "gpt_neo",
        ARCHITECTURES,
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        prefix="transformer.",
        ignored=(r".*\.attn\.attention\.(bias|masked_bias)",),
        duplicates={"lm_head.weight": "transformer.wte.weight"},
        labels=heads.of_decoder("GPTNeo"),
        presets={
            "125m": alternating(768, 12, 12),
            "1.3b": alternating(2048, 24, 16),
            "tiny": alternating(
                64,
                2,
                4,
                vocab_size=259,
                max_length=128,
                sliding_window=32,
                bos_token_id=None,
                eos_token_ids=(),
            ),
        },
    ),
)
