"""Registry of the model families exchanged with Hugging Face, by `model_type`."""

import dataclasses

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
    starcoder2,
    t5,
)
from lm.families.family import Family, expect
from lm.families.heads import labels, labels_to_hf
from lm.models.config import LM_HEADS, ConfigError, ModelConfig, nearest

ARCHITECTURES = {  # rows of the table in README.md
    "The original Transformer": (marian,),
    "GPT and its extensions": (
        openai_gpt,
        gpt2,
        gpt_neo,
        gpt_neox,
        opt,
        llama,
        phi3,
        gemma,
        olmo2,
        stablelm,
        starcoder2,
    ),
    "BERT and its extensions": (bert, roberta, distilbert, electra, albert, modernbert),
    "BART": (bart,),
    "T5": (t5,),
    "Mamba, and hybrids with attention": (mamba, bamba),
}
HEAD_FIELDS = (
    "n_labels",
    "label_names",
    "head_bias",
    "head_dense",
    "head_dense_bias",
    "head_norm",
    "pooling",
    "pooler",
    "normalize_embedding",
)
FAMILIES: dict[str, Family] = {
    f.model_type: f
    for modules in ARCHITECTURES.values()
    for module in modules
    for f in module.FAMILIES
}

__all__ = [
    "FAMILIES",
    "Family",
    "class_of",
    "config_from_hf",
    "config_to_hf",
    "get",
    "markdown",
    "other_head",
    "preset",
]


def get(model_type: str | None) -> Family:
    """Look up the family of a `model_type`.

    Raises ConfigError with the nearest name and all supported ones if it is unknown.
    """
    if model_type not in FAMILIES:
        hint = nearest(str(model_type), FAMILIES)
        raise ConfigError(
            f"model_type {model_type!r} is not supported{hint}; supported: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json, as a dict, to a ModelConfig.

    Raises ConfigError naming the first unsupported field.
    """
    family = get(hf.get("model_type"))
    if hf.get("quantization_config"):
        method = (
            hf["quantization_config"].get("quant_method", "unknown")
            if isinstance(hf["quantization_config"], dict)
            else "unknown"
        )
        raise ConfigError(
            f"quantization_config (quant_method={method!r}) is not supported; "
            "use the unquantised checkpoint or a GGUF file"
        )
    found = next((x for x in map(family.labelled, hf.get("architectures") or []) if x), None)
    try:
        if found is None:
            return family.config_from_hf(hf)
        expect(hf, token_classification_bias=True)
        base = family.config_from_hf(hf | dict(architectures=[found.base or family.bare()]))
        return base.replace(head=found.head, **labels(hf, found.head), **found.fields(base))
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"config.json of this {family.model_type!r} model holds a value of the wrong kind: "
            f"{error}"
        ) from error


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json, as a dict.

    Raises ConfigError if the family has no Hugging Face class with the model's head.
    """
    family, name = get(c.family), class_of(c)
    hf = {"model_type": family.model_type, "architectures": [name], **family.config_to_hf(c)}
    return hf | labels_to_hf(c) if family.labelled(c.head) else hf


def class_of(c: ModelConfig) -> str:
    """Hugging Face class of a model.

    Raises ConfigError if the family has none with the model's head.
    """
    family = get(c.family).of(c)
    if classes := family.classes(c.head):
        return classes[0]
    alone = "the encoder alone of " * (family is not FAMILIES[c.family])
    known = dict.fromkeys([*family.architectures.values(), *(x.head for x in family.labels)])
    others = f"heads that have one: {', '.join(known)}" if known else "nor has it with another head"
    raise ConfigError(
        f"{alone}a {c.family} model with head={c.head!r} has no Hugging Face class; {others}. "
        "lm.load, lm.evaluate and lm.label read the folder of its run"
    )


def other_head(c: ModelConfig, head: str, **fields) -> ModelConfig:
    """Replace the head of a config, and all fields that depend on it; `fields` override.

    The fields take the values of the family's class for the new head. An embedding, and a label
    without such a class, is read from the mean over a bidirectional model's tokens, or from the
    last token of a causal model. Labels are kept.
    """
    family = get(c.family).of(c)
    known = {f.name: f.default for f in dataclasses.fields(ModelConfig) if f.name in HEAD_FIELDS}
    classes = family.classes("sequence_classification" if head == "value" else head)
    if classes:
        hf = {
            "model_type": family.model_type,
            **family.config_to_hf(c),
            "architectures": classes[:1],
        }
        known |= {name: getattr(config_from_hf(hf), name) for name in HEAD_FIELDS}
    known |= dict(n_labels=0, label_names=())
    if head in ("sequence_classification", "token_classification"):
        known |= dict(
            n_labels=c.n_labels, label_names=() if "n_labels" in fields else c.label_names
        )
    if head in ("none", "embedding"):
        known["pooler"] = c.pooler
    if head == "embedding" or not classes:
        known["pooling"] = "last" if c.causal else "mean"
    if head in (*LM_HEADS, "value"):
        known["pooler"] = False
    return c.replace(head=head, **known | fields)


def preset(family: str, size: str, **changes) -> ModelConfig:
    """Return a named configuration, e.g. preset("gpt2", "124m", max_length=512)."""
    presets = get(family).presets
    if size not in presets:
        raise ConfigError(
            f"{family} has no preset {size!r}{nearest(size, presets)}; one of {', '.join(presets)}"
        )
    return presets[size].replace(**changes)


def markdown() -> str:
    """Table of families in docs/architectures.md."""
    lines = [
        "| `model_type` | classes read and written | labels | presets | GGUF |",
        "|---|---|---|---|---|",
    ]
    for name, f in FAMILIES.items():
        classes, presets = (
            ", ".join(f"`{x}`" for x in names) for names in (f.architectures, f.presets)
        )
        given = ", ".join(x.head.split("_")[0] for x in f.labels)
        lines.append(
            f"| `{name}` | {classes} | {given} | {presets} | {'read' if f.gguf_table else ''} |"
        )
    return "\n".join(lines)


def readme() -> str:
    """Table of architectures in README.md."""
    lines = [
        "| architecture | families (`model_type`) | heads with weights in and out |",
        "|---|---|---|",
    ]
    for name, modules in ARCHITECTURES.items():
        members = [f for module in modules for f in module.FAMILIES]
        heads = dict.fromkeys(
            head
            for f in members
            for head in (*f.architectures.values(), *(x.head for x in f.labels))
            if head != "none"
        )
        lines.append(
            f"| {name} | {', '.join(f'`{f.model_type}`' for f in members)} | "
            f"{', '.join(heads).replace('_', ' ')} |"
        )
    return "\n".join(lines)
