"""Conversion of rotary positions and attention windows from and to config.json."""

from typing import Any

from lm.families.family import expect, value
from lm.models.config import ConfigError, ModelConfig

ROPE_SCALINGS = {  # rope_type -> its parameters
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"),
}
KINDS = {"full_attention": "global", "sliding_attention": "local"}


def rope(hf: dict, fraction: float | None = None) -> dict[str, Any]:
    """Read the rotary fields from `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

    fraction: the family's default `partial_rotary_factor`; None for a family that always rotates
    all features.
    """
    given = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    theta = given.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0
    kind, older = given.pop("rope_type", None), given.pop("type", None)
    kind = kind or older or "default"
    part = given.get("partial_rotary_factor") or hf.get("partial_rotary_factor")
    if fraction is None:
        expect({**hf, **given}, partial_rotary_factor=1.0)
    if kind not in ROPE_SCALINGS:
        raise ConfigError(
            f"rope_type={kind!r} is not supported for model_type {hf.get('model_type')!r}; "
            f"one of {', '.join(ROPE_SCALINGS)}"
        )
    missing = [name for name in ROPE_SCALINGS[kind] if given.get(name) is None]
    if missing:
        raise ConfigError(
            f"rope_type={kind!r} needs {', '.join(missing)} beside it in config.json's rope "
            "parameters"
        )
    scaling = tuple((name, float(given[name])) for name in ROPE_SCALINGS[kind])
    return dict(
        rope_theta=float(theta),
        rope_scaling=scaling,
        rotary_fraction=float(part or fraction or 1.0),
    )


def rope_to_hf(c: ModelConfig) -> dict[str, Any]:
    """Write the older spelling, which every version of transformers reads."""
    scaling: dict[str, Any] = {
        name: int(x) if name.startswith("original") else x for name, x in c.rope_scaling
    }
    if scaling:
        scaling["rope_type"] = "llama3" if "low_freq_factor" in scaling else "linear"
    return dict(rope_theta=c.rope_theta, rope_scaling=scaling or None)


def theta_of(parameters: dict | None, default: float) -> float:
    """Read the base of unscaled rotary positions; ConfigError if they are scaled."""
    given = parameters or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind != "default":
        raise ConfigError(
            f"rope_type={kind!r} is not supported where kinds of layers have rotary positions of "
            "their own; only 'default' is"
        )
    return float(given.get("rope_theta") or default)


def windows(hf: dict, size: int | None, kinds: list[str]) -> dict[str, Any]:
    """Read sliding window and layer pattern.

    `kinds` are the kinds of the layers if config.json has no `layer_types`.
    """
    layers, kinds = value(hf, "num_hidden_layers"), hf.get("layer_types") or kinds
    strange = sorted(set(kinds) - set(KINDS))
    if strange:
        raise ConfigError(
            f"layer_types has {strange}, not supported for model_type {hf['model_type']!r}; "
            f"only {', '.join(KINDS)} are"
        )
    if len(kinds) != layers:
        raise ConfigError(
            f"layer_types has {len(kinds)} entries for num_hidden_layers={layers}; give one a layer"
        )
    ours = tuple(KINDS[kind] for kind in kinds)
    if not size or "local" not in ours:
        return dict(sliding_window=0, layer_pattern=())
    period = next(
        n for n in range(1, layers + 1) if all(ours[i] == ours[i % n] for i in range(layers))
    )
    return dict(sliding_window=size, layer_pattern=ours[:period] if "global" in ours else ())


def layer_types(c: ModelConfig) -> list[str]:
    """The `layer_types` of a model: the inverse of `windows`."""
    theirs = {ours: name for name, ours in KINDS.items()}
    pattern = c.layer_pattern or ("local" if c.sliding_window else "global",)
    return [theirs[pattern[i % len(pattern)]] for i in range(c.n_layers)]
