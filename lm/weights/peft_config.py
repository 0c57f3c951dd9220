"""PEFT's adapter_config.json (version 0.21): every field is honoured, inert or refused."""

import json
import math
import re
from collections.abc import Collection
from pathlib import Path

from lm.models.config import ConfigError

CONFIG = "adapter_config.json"
OBEYED = {
    "peft_type",
    "base_model_name_or_path",
    "revision",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "bias",
}
INERT = {  # for other software or training, or options of init_lora_weights
    "task_type",
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "runtime_config",
    "lora_dropout",
    "fan_in_fan_out",
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
}
# values of init_lora_weights, besides true and false, that leave the base unchanged
STARTS = ("gaussian", "eva", "orthogonal", "mica")
CLASSES = {
    "SEQ_2_SEQ_LM": "ForSeq2SeqLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "ForFeatureExtraction",
}


def read_config(path: str | Path) -> dict:
    """Read adapter_config.json of a directory.

    Raises ConfigError, naming field and value, for anything but plain LoRA.
    """
    file = Path(path) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds a JSON {type(config).__name__}, expected an object")
    kind, start, revision = (
        config.get("peft_type"),
        config.get("init_lora_weights", True),
        config.get("revision"),
    )
    merge = merging(path, config)
    if kind != "LORA":
        raise ConfigError(f"{file}: peft_type={kind!r} is not supported, only 'LORA'; {merge}")
    if start not in (True, False, None) and str(start).lower() not in STARTS:
        raise ConfigError(
            f"{file}: init_lora_weights={start!r} changed the weights of the base; "
            "save the adapter with save_pretrained(..., "
            "path_initial_model_for_weight_conversion=INITIAL_ADAPTER), "
            f"which makes it plain LoRA, or {merge}"
        )
    if config.get("bias") not in ("none", None):
        raise ConfigError(f"{file}: bias={config['bias']!r} is not supported, only 'none'; {merge}")
    if revision not in (None, "", "main"):
        raise ConfigError(
            f"{file}: revision={revision!r} of the base: download that revision, "
            "and name its directory in the file instead"
        )
    for name, value in config.items():
        if name not in OBEYED | INERT and value not in (None, False, "", [], {}):
            raise ConfigError(f"{file}: {name}={value!r} is not supported; {merge}")
    _check_numbers(file, config)
    return config


def merging(path: str | Path, config: dict) -> str:
    """Advice for an adapter that only PEFT can read, with the command."""
    name = f"AutoPeftModel{CLASSES.get(str(config.get('task_type')), 'ForCausalLM')}"
    code = (
        f"from peft import {name} as M; "
        f"M.from_pretrained('{path}').merge_and_unload().save_pretrained('MERGED')"
    )
    return (
        f'merge it into its base with PEFT: python -c "{code}"; '
        "copy the tokenizer of the base into MERGED, and load MERGED"
    )


def _check_numbers(file: Path, config: dict) -> None:
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool) and x > 0
    number = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    for one, several, good, wanted in (
        ("r", "rank_pattern", whole, "positive integer"),
        ("lora_alpha", "alpha_pattern", number, "number"),
    ):
        patterns = config.get(several) or {}
        if not isinstance(patterns, dict):
            raise ConfigError(
                f"{file}: {several}={patterns!r}, expected an object of patterns and values"
            )
        for name, value in (
            (one, config.get(one, 8)),
            *((f"{several}[{key!r}]", value) for key, value in patterns.items()),
        ):
            if not good(value):
                raise ConfigError(f"{file}: {name}={value!r}, expected a {wanted}")
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(name)
        if not isinstance(value, str | None) and not (
            isinstance(value, list) and all(isinstance(x, str) for x in value)
        ):
            raise ConfigError(f"{file}: {name}={value!r}, expected a string or a list of strings")
    layers = config.get("layers_to_transform")
    if not isinstance(layers, int | None) and not (
        isinstance(layers, list) and all(isinstance(x, int) for x in layers)
    ):
        raise ConfigError(
            f"{file}: layers_to_transform={layers!r}, expected a number or a list of numbers"
        )


def rank_of(config: dict, name: str) -> int:
    """Rank of a module's adapter."""
    return _of(config.get("rank_pattern"), config.get("r", 8), name)


def scale_of(config: dict, name: str) -> float:
    """Scale of a module's adapter."""
    rank, alpha = (
        rank_of(config, name),
        _of(config.get("alpha_pattern"), config.get("lora_alpha", 8), name),
    )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of(patterns: dict | None, otherwise, name: str):
    """Value of the first pattern that matches the name or its end, else `otherwise`."""
    return next(
        (
            value
            for key, value in (patterns or {}).items()
            if _matches(re.match, rf"(.*\.)?({key})$", name)
        ),
        otherwise,
    )


def _matches(how, pattern: str, name: str) -> re.Match | None:
    try:
        return how(pattern, name)
    except re.error as error:
        raise ConfigError(f"{CONFIG}: {pattern!r} is not a regular expression: {error}") from error


def targeted(config: dict, names: Collection[str]) -> set[str] | None:
    """Modules, of these names, that PEFT adapts; None if the config does not say.

    Follows PEFT's check_target_module_exists.
    """
    wanted = config.get("target_modules")
    if (
        wanted is None
        or wanted == []
        or (isinstance(wanted, str) and wanted.lower() == "all-linear")
    ):
        return None
    named = lambda some, name: (
        bool(some)
        and (
            _matches(re.fullmatch, some, name) is not None
            if isinstance(some, str)
            else any(f".{name}".endswith(f".{x}") for x in some)
        )
    )
    chosen = {
        name
        for name in names
        if named(wanted, name) and not named(config.get("exclude_modules"), name)
    }
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or [r"[^.]*"]
    if isinstance(wanted, str) or layers is None or layers == []:
        return chosen
    layers, patterns = (
        layers if isinstance(layers, list) else [layers],
        [patterns] if isinstance(patterns, str) else patterns,
    )
    # Without layers_pattern PEFT requires a prefix before the name of the layer list.
    before = r"(?:^|.*?\.)" if config.get("layers_pattern") else r".*?\."
    number = lambda name: next(
        (int(m[1]) for p in patterns if (m := _matches(re.match, rf"{before}{p}\.(\d+)\.", name))),
        None,
    )
    return {name for name in chosen if number(name) in layers}
