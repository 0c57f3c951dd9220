"""The registry of families: what can be exchanged with Hugging Face, by `model_type`."""

from lm.families import (
    albert,
    bamba,
    bart,
    bert,
    distilbert,
    electra,
    gemma,
    gpt2,
    gpt_neo,
    gpt_neox,
    llama,
    mamba,
    marian,
    modernbert,
    olmo2,
    openai_gpt,
    opt,
    phi3,
    roberta,
    stablelm,
    t5,
)
from lm.families.family import Family
from lm.models.config import ConfigError, ModelConfig, nearest

MODULES = (
    openai_gpt, gpt2, gpt_neo, gpt_neox, opt, llama, phi3, gemma, olmo2, stablelm, bert, roberta, distilbert, electra, albert,
    modernbert, mamba, bamba, marian, bart, t5,
)  # fmt: skip
FAMILIES: dict[str, Family] = {f.model_type: f for module in MODULES for f in module.FAMILIES}

__all__ = ["FAMILIES", "Family", "config_from_hf", "get", "markdown", "preset"]


def get(model_type: str | None) -> Family:
    """The family of a `model_type`; ConfigError with the nearest name and all that are supported otherwise."""
    if model_type not in FAMILIES:
        hint = nearest(str(model_type), FAMILIES)
        raise ConfigError(f"model_type {model_type!r} is not supported{hint}; supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


def config_from_hf(hf: dict) -> ModelConfig:
    """config.json as a dict -> ModelConfig; ConfigError naming the first thing in it that is not supported."""
    family = get(hf.get("model_type"))
    if hf.get("quantization_config"):
        method = hf["quantization_config"].get("quant_method", "unknown") if isinstance(hf["quantization_config"], dict) else "unknown"
        raise ConfigError(f"quantization_config (quant_method={method!r}) is not supported; use the unquantised checkpoint or a GGUF file")
    try:
        return family.config_from_hf(hf)
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"config.json of this {family.model_type!r} model holds a value of the wrong kind: {error}") from error


def preset(family: str, size: str, **changes) -> ModelConfig:
    """A named configuration, e.g. preset("gpt2", "124m", max_length=512)."""
    presets = get(family).presets
    if size not in presets:
        raise ConfigError(f"{family} has no preset {size!r}{nearest(size, presets)}; one of {', '.join(presets)}")
    return presets[size].replace(**changes)


def markdown() -> str:
    """The table of families in docs/architectures.md."""
    lines = ["| `model_type` | classes read and written | presets | GGUF |", "|---|---|---|---|"]
    for name, f in FAMILIES.items():
        classes, presets = (", ".join(f"`{x}`" for x in names) for names in (f.architectures, f.presets))
        lines.append(f"| `{name}` | {classes} | {presets} | {'read' if f.gguf_table else ''} |")
    return "\n".join(lines)
