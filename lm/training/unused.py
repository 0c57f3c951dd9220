"""Refuse config fields that the objective does not use, unless they have their defaults."""

from collections.abc import Iterable
from typing import Any

import ml_collections

from lm.data import templates
from lm.data.labelled import CLASSIFICATION, CONTRASTIVE, QUESTIONS, TASKS, TOKENS
from lm.models.config import ConfigError

TEXT = (
    "next_token",
    "prefix_lm",
    "masked",
    "span_corruption",
    "ul2",
    "denoising",
)  # objectives on plain text
INSTRUCT = ("instruct",)  # objectives on prompts with answers
TOKEN_LOSS = (*TEXT, *INSTRUCT)

READ: dict[str, tuple[Any, tuple[str, ...]]] = {  # field -> (default, objectives that use it)
    "objective.chunk": (0, TOKEN_LOSS),
    "objective.label_smoothing": (0.0, TOKEN_LOSS),
    "objective.z_loss": (0.0, TOKEN_LOSS),
    "data.field": ("text", (*TEXT, CLASSIFICATION, TOKENS, CONTRASTIVE)),
    "data.separator": ("", TEXT),
    "data.holdout_share": (0.0, TOKEN_LOSS),
    "data.stride": (0, ("next_token", QUESTIONS)),
    "data.label_field": ("", (CLASSIFICATION, TOKENS)),
    "data.pair_field": ("", (CLASSIFICATION, CONTRASTIVE)),
    "data.negatives_field": ("", (CONTRASTIVE,)),
    "data.max_long": (0.01, (*INSTRUCT, *TASKS)),
    "data.synthetic_rows": (0, TEXT),
    **{
        f"data.{field}": (default, INSTRUCT)
        for field, default in {
            "format": "text",
            "template": "",
            "turns": "all",
            "shots": 0,
            "cap": 0,
            "hold_out": "",
            "too_long": "drop",
            "target_length": 0,
            **{
                f"tk_instruct.{name}": default
                for name, default in templates.options_of("tk_instruct").items()
                if name != "seed"
            },
        }.items()
    },
}
OPTIONS: dict[str, dict[str, Any]] = {  # defaults of the sections objective.NAME
    "masked": {"rate": 0.15, "mask": 0.8, "random": 0.1, "whole_words": False},
    "span_corruption": {"rate": 0.15, "mean_span": 3.0},
    "ul2": {"r": 2.0, "s": 1.0, "x": 4.0, "modes": False},
    "denoising": {
        "rate": 0.3,
        "mean_span": 3.0,
        "permute_sentences": False,
        "token_mask": 0.0,
        "delete": 0.0,
        "rotate": 0.0,
    },
    "instruct": {"prompt_loss_weight": 0.0},
    CLASSIFICATION: {"labels": (), "regression": False},
    TOKENS: {"labels": ()},
    CONTRASTIVE: {"temperature": 0.05, "negatives": 0, "symmetric": False, "pooling": ""},
}
READ |= {
    f"objective.{name}.{option}": (default, (name,))
    for name, section in OPTIONS.items()
    for option, default in section.items()
}


def check(config: ml_collections.ConfigDict, others: Iterable[str] = ()) -> None:
    """Raise ConfigError for a field that the objective ignores, unless it has its default.

    The message names the field, its value, the objectives that use it and its default.
    others: objectives of sources that have their own, whose fields are used too.
    """
    names = {config.objective.name, *others}
    for path, (default, readers) in READ.items():
        value = _section(config, path)[path.rpartition(".")[2]]
        changed = tuple(value) != default if isinstance(default, tuple) else value != default
        if changed and not names & {*readers}:
            raise ConfigError(
                f"{path}={value!r} is not used by objective {config.objective.name!r}, but by "
                f"{', '.join(readers)}; leave it at {default!r}"
            )


def reset(config: ml_collections.ConfigDict) -> None:
    """Reset fields that the objective does not use to their defaults."""
    for path, (default, readers) in READ.items():
        if config.objective.name not in readers:
            _section(config, path)[path.rpartition(".")[2]] = default


def _section(config: Any, path: str) -> Any:
    for name in path.split(".")[:-1]:
        config = config[name]
    return config
