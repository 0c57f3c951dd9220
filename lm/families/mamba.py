"""Mamba (Gu & Dao 2023), Mamba-2 (Dao & Gu 2024) and FalconMamba (Zuo et al. 2024).

All three are stacks of state-space layers without attention.
"""

import math
from typing import Any

from lm.families.family import (
    Family,
    activation,
    head,
    special_tokens,
    special_tokens_to_hf,
    their_activation,
    value,
)
from lm.families.table import Row, dense, depthwise, linear, norm, row, table
from lm.models.config import ConfigError, ModelConfig

MAMBA = "backbone.layers.{i}.mixer"
UNBOUNDED = 2**20  # max_length if config.json has none: a state has no length limit


def merged(parts: str, suffix: str = "") -> str:
    """Our paths of the parts that are merged in one Hugging Face tensor."""
    return " ".join(f"layers/ssm/{part}{suffix}" for part in parts.split())


def mixer(theirs: str, projected: str, convolved: str) -> list[Row]:
    """Rows that Mamba and Mamba-2 share: the projections in and out, convolution and recurrence.

    `projected` and `convolved` list the parts of the input projection and convolution, in order.
    """
    return [
        row(merged(projected), f"{theirs}.in_proj.weight", linear()),
        row(merged(projected, "_bias"), f"{theirs}.in_proj.bias"),
        row(merged(convolved), f"{theirs}.conv1d.weight", depthwise()),
        row(merged(convolved, "_bias"), f"{theirs}.conv1d.bias"),
        row("layers/ssm/a_log", f"{theirs}.A_log"),
        row("layers/ssm/skip", f"{theirs}.D"),
        *dense("layers/ssm/out", f"{theirs}.out_proj"),
    ]


def mixer2(theirs: str) -> list[Row]:
    """Rows of Mamba-2's mixer."""
    own = [
        row("layers/ssm/dt_bias", f"{theirs}.dt_bias"),
        row("layers/ssm/norm_scale", f"{theirs}.norm.weight"),
    ]
    return mixer(theirs, "gate input bc dt_in", "conv bc_conv") + own


def around(rows: list[Row]) -> tuple[Row, ...]:
    """Rows of a mixer and of the rest of the model."""
    return table(
        row("embeddings/token", "backbone.embeddings.weight"),
        norm("layers/ssm_norm", "backbone.layers.{i}.norm"),
        rows,
        norm("final_norm", "backbone.norm_f"),
        row("head/table", "lm_head.weight"),
    )


WEIGHTS_1 = around(
    [
        *mixer(MAMBA, "input gate", "conv"),
        row("layers/ssm/dt_down layers/ssm/bc", f"{MAMBA}.x_proj.weight", linear()),
        row("layers/ssm/dt_up", f"{MAMBA}.dt_proj.weight", linear()),
        row("layers/ssm/dt_bias", f"{MAMBA}.dt_proj.bias"),
    ]
)
WEIGHTS_2 = around(mixer2(MAMBA))


def architectures(stem: str) -> dict[str, str]:
    return {f"{stem}ForCausalLM": "causal_lm", f"{stem}Model": "none"}


STEMS = {"mamba": "Mamba", "mamba2": "Mamba2", "falcon_mamba": "FalconMamba"}


def time_step_limit(hf: dict) -> tuple[float, ...]:
    """Read the bounds of dt; () when they bound nothing.

    transformers writes infinity as {"__float__": "Infinity"}.
    """
    given = hf.get("time_step_limit")
    if given is None:
        return ()
    try:
        lowest, highest = (float(x["__float__"] if isinstance(x, dict) else x) for x in given)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"time_step_limit={given!r}: expected two numbers, the lowest and the highest time step"
        ) from error
    return () if lowest <= 0 and highest == math.inf else (lowest, highest)


def time_step_limit_to_hf(c: ModelConfig) -> dict[str, Any]:
    """Inverse of `time_step_limit`."""
    return {
        "time_step_limit": [
            {"__float__": "Infinity"} if x == math.inf else x
            for x in c.ssm_dt_limit or (0.0, math.inf)
        ]
    }


def fields(hf: dict, tied: bool) -> dict[str, Any]:
    """Fields of ModelConfig that the three share; `tied` is their default for tied embeddings."""
    return dict(
        family=hf["model_type"],
        vocab_size=value(hf, "vocab_size"),
        d_model=value(hf, "hidden_size"),
        n_layers=value(hf, "num_hidden_layers"),
        n_heads=0,
        n_kv_heads=0,
        head_dim=0,
        d_ff=0,
        positions="none",
        max_length=hf.get("max_position_embeddings") or UNBOUNDED,
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        activation=activation(hf, "hidden_act", "silu"),
        head=head(hf, architectures(STEMS[hf["model_type"]])),
        tie_embeddings=hf.get("tie_word_embeddings", tied),
        initializer_range=hf.get("initializer_range", 0.1),
        ssm_conv=hf.get("conv_kernel", 4),
        ssm_bias=hf.get("use_bias", False),
        ssm_conv_bias=hf.get("use_conv_bias", True),
        **special_tokens(hf),
    )


def fields_to_hf(c: ModelConfig) -> dict[str, Any]:
    """Inverse of `fields`."""
    return dict(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        max_position_embeddings=c.max_length,
        layer_norm_epsilon=c.norm_eps,
        hidden_act=their_activation(c.activation),
        tie_word_embeddings=c.tie_embeddings,
        initializer_range=c.initializer_range,
        expand=c.ssm_inner // c.d_model,
        state_size=c.ssm_state,
        conv_kernel=c.ssm_conv,
        use_bias=c.ssm_bias,
        use_conv_bias=c.ssm_conv_bias,
        **special_tokens_to_hf(c),
    )


def mamba_from_hf(hf: dict) -> ModelConfig:
    """Convert the config.json of Mamba or FalconMamba to a ModelConfig."""
    falcon, d_model = hf["model_type"] == "falcon_mamba", value(hf, "hidden_size")
    inner, rank = (
        hf.get("intermediate_size") or int(hf.get("expand", 2) * d_model),
        hf.get("time_step_rank", "auto"),
    )
    return ModelConfig(
        **fields(hf, tied=True),
        ssm_inner=inner,
        ssm_state=hf.get("state_size", 16),
        ssm_dt_rank=math.ceil(d_model / 16) if rank == "auto" else rank,
        ssm_inner_norm_eps=hf.get("mixer_rms_eps", 1e-6) if falcon else 0.0,
    )


def mamba_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    falcon = {"mixer_rms_eps": c.ssm_inner_norm_eps} if c.family == "falcon_mamba" else {}
    return (
        fields_to_hf(c) | dict(intermediate_size=c.ssm_inner, time_step_rank=c.ssm_dt_rank) | falcon
    )


def mamba2_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    return ModelConfig(
        **fields(hf, tied=False),
        ssm_inner=int(hf.get("expand", 2) * value(hf, "hidden_size")),
        ssm_state=hf.get("state_size", 128),
        ssm_heads=hf.get("num_heads", 128),
        ssm_head_dim=hf.get("head_dim", 64),
        ssm_groups=hf.get("n_groups", 8),
        ssm_dt_limit=time_step_limit(hf),
    )


def mamba2_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return (
        fields_to_hf(c)
        | dict(num_heads=c.ssm_heads, head_dim=c.ssm_head_dim, n_groups=c.ssm_groups)
        | time_step_limit_to_hf(c)
    )


TINY = ModelConfig(
    family="mamba",
    vocab_size=259,
    d_model=64,
    n_layers=2,
    n_heads=0,
    n_kv_heads=0,
    head_dim=0,
    d_ff=0,
    max_length=UNBOUNDED,
    positions="none",
    initializer_range=0.1,
    ssm_inner=128,
    ssm_state=16,
    ssm_dt_rank=4,
)
TINY_2 = TINY.replace(family="mamba2", ssm_dt_rank=0, ssm_heads=8, ssm_head_dim=16, ssm_groups=2)
EOS_0 = dict(bos_token_id=0, eos_token_ids=(0,), pad_token_id=0)
PRESETS = {
    "mamba": {
        "130m": TINY.replace(
            d_model=768, n_layers=24, vocab_size=50280, ssm_inner=1536, ssm_dt_rank=48, **EOS_0
        ),
        "tiny": TINY,
    },
    "mamba2": {
        "130m": TINY_2.replace(
            d_model=768,
            n_layers=24,
            vocab_size=50288,
            ssm_inner=1536,
            ssm_state=128,
            ssm_heads=24,
            ssm_head_dim=64,
            ssm_groups=1,
            **EOS_0,
        ),
        "tiny": TINY_2,
    },
    "falcon_mamba": {
        "7b": TINY.replace(
            family="falcon_mamba",
            d_model=4096,
            n_layers=64,
            vocab_size=65024,
            ssm_inner=8192,
            ssm_dt_rank=256,
            ssm_inner_norm_eps=1e-6,
            tie_embeddings=False,
            bos_token_id=0,
            eos_token_ids=(11,),
            pad_token_id=11,
        ),
        "tiny": TINY.replace(family="falcon_mamba", ssm_inner_norm_eps=1e-6),
    },
}


def family(model_type: str, weights: tuple[Row, ...], from_hf, to_hf) -> Family:
    return Family(
        model_type,
        architectures(STEMS[model_type]),
        weights,
        from_hf,
        to_hf,
        PRESETS[model_type],
        prefix="backbone.",
        renames={r"^(backbone\.)?embedding\.": r"\1embeddings."},
        duplicates={"lm_head.weight": "backbone.embeddings.weight"},
    )


FAMILIES = (
    family("mamba", WEIGHTS_1, mamba_from_hf, mamba_to_hf),
    family("mamba2", WEIGHTS_2, mamba2_from_hf, mamba2_to_hf),
    family("falcon_mamba", WEIGHTS_1, mamba_from_hf, mamba_to_hf),
)
