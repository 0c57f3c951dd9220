"""Instruct data in a config: check the fields; make the template, stop tokens and rows."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from lm.data import fitting, instruct, templates
from lm.data.encoding import Encoder
from lm.data.examples import Record
from lm.data.fitting import Limits
from lm.data.packing import Packed
from lm.data.records import FORMATS, Reading
from lm.data.templates import Template
from lm.data.templates.chat import TURNS
from lm.models.config import ConfigError, ModelConfig, nearest
from lm.training import unused

OBJECTIVES = unused.INSTRUCT
HOLDOUT = "holdout_share"  # in eval.data: the rows held out by data.holdout_share
HELD_OUT = (
    "hold_out"  # in eval.data: the tasks of data.files that data.hold_out excludes from training
)
PROMPTS = "objective.instruct.prompt_loss_weight"
SEEDED = ("self_instruct", "tk_instruct")  # templates with random choices


def check(config: ml_collections.ConfigDict) -> None:
    """Raise ConfigError, naming the field, when fields contradict the objective or each other."""
    data, name, weight = (
        config.data,
        config.objective.name,
        config.objective.instruct.prompt_loss_weight,
    )
    if name not in OBJECTIVES:
        return
    if not 0 <= weight <= 1:
        raise ConfigError(
            f"{PROMPTS}={weight}: expected a share of the weight of an answer's tokens, from 0 to 1"
        )
    if data.format == "text":
        raise ConfigError(
            f"data.format='text' has no answers to learn: objective {name!r} needs 'auto' or one "
            f"of {', '.join(FORMATS)}"
        )
    if data.format != "auto" and data.format not in FORMATS:
        raise ConfigError(
            f"data.format={data.format!r} is unknown{nearest(data.format, FORMATS)}; one of "
            f"auto, {', '.join(FORMATS)}"
        )
    if data.template:
        templates.check_name(data.template)
        if data.template != "tk_instruct" and (changed := _changed_options(data)):
            raise ConfigError(
                f"data.{changed[0]} is for the template 'tk_instruct', and data.template is "
                f"{data.template!r}"
            )
        if data.turns != TURNS[0] and "turns" not in templates.options_of(data.template):
            raise ConfigError(
                f"data.turns={data.turns!r}: template {data.template!r} has one turn; use a chat "
                "template such as 'chatml'"
            )
    elif not config.init_from:
        raise ConfigError(f"data.template is not set: one of {', '.join(templates.TEMPLATES)}")
    for field, known in (("turns", TURNS), ("too_long", fitting.POLICIES)):
        if data[field] not in known:
            raise ConfigError(
                f"data.{field}={data[field]!r}{nearest(data[field], known)}: expected one of "
                f"{', '.join(known)}"
            )
    for field in ("cap", "target_length"):
        if data[field] < 0:
            raise ConfigError(f"data.{field}={data[field]}: expected 0 or more")
    if not 0 <= data.max_long <= 1:
        raise ConfigError(f"data.max_long={data.max_long}: expected a share between 0 and 1")
    if HELD_OUT in config.eval.data.values() and not data.hold_out:
        raise ConfigError(f"eval.data asks for {HELD_OUT!r}, and data.hold_out names no tasks")


def _changed_options(data) -> list[str]:
    known = templates.options_of("tk_instruct")
    return [
        f"tk_instruct.{name}" for name, value in data.tk_instruct.items() if value != known[name]
    ]


def template_of(
    config: ml_collections.ConfigDict,
    tokenizer,
    kept: Template | None,
    there: Mapping | None = None,
) -> Template | None:
    """Template named by the config, else `kept`, that of init_from; None for other objectives.

    there: description of the template in the run folder, whose date is used.
    Raises ConfigError.
    """
    data = config.data
    if config.objective.name not in OBJECTIVES:
        return None
    if not data.template:
        if kept is None:
            raise ConfigError(
                f"data.template is not set, and {config.init_from} was trained with none: one of "
                f"{', '.join(templates.TEMPLATES)}"
            )
        if data.turns != TURNS[0] or data.shots or _changed_options(data):
            raise ConfigError(
                f"data.template is not set, so that it is that of {config.init_from} as it was; "
                "set it to change its options"
            )
        return kept
    options: dict[str, Any] = data.tk_instruct.to_dict() if data.template == "tk_instruct" else {}
    if "turns" in templates.options_of(data.template):
        options["turns"] = data.turns
    if data.template in SEEDED:
        options["seed"] = config.seed
    options["shots"] = data.shots
    options |= templates.date_of(there, data.template, tokenizer)
    return templates.get(data.template, tokenizer, **options)


def with_control(tokenizer, name: str):
    """Add the control tokens of a template to the bytes tokenizer."""
    import transformers

    missing = [
        token
        for token in templates.CONTROL.get(name, ())
        if templates.special_id(tokenizer, token) is None
    ]
    tokenizer.add_tokens(
        [transformers.AddedToken(token, special=True) for token in missing], special_tokens=True
    )
    return tokenizer


def with_stop(config: ModelConfig, template: Template | None, tokenizer) -> ModelConfig:
    """Add the token that ends the template's answers to the model's end-of-text tokens."""
    if template is None:
        return config
    stop = templates.stop_id(template, tokenizer)
    return (
        config
        if stop in config.eos_token_ids
        else config.replace(eos_token_ids=(*config.eos_token_ids, stop))
    )


def pack(
    config: ml_collections.ConfigDict,
    model: ModelConfig,
    tokenizer,
    template: Template,
    files: str,
    cache,
    training: bool,
) -> Packed:
    """Pack the examples of data.files, or of an entry of eval.data if not `training`.

    Prompts have no weight in evaluation. Raises ConfigError and DataError.
    """
    data = config.data
    length = data.target_length or config.length
    start = model.decoder_start_token_id if model.encoder_layers else None
    if data.target_length and start is None:
        raise ConfigError(
            f"data.target_length={data.target_length} is for an encoder-decoder; a decoder's "
            "rows have length"
        )
    weight = config.objective.instruct.prompt_loss_weight
    if weight and model.encoder_layers:
        raise ConfigError(
            f"{PROMPTS}={weight} is for a decoder: the encoder of this model reads the prompt, "
            "and nothing predicts it; set it to 0"
        )
    if model.encoder_layers and start is None:
        raise ConfigError(
            "model.decoder_start_token_id is not set, and the decoder must start from some token"
        )
    if length > model.max_length:
        raise ConfigError(
            f"data.target_length={length} is more than model.max_length={model.max_length}; "
            "lower it"
        )
    limits = Limits(length, 0 if start is None else config.length, data.too_long, data.max_long)
    reading = Reading(
        data.format, data.cap, data.hold_out, data.max_bad_share, config.seed, data.holdout_share
    )
    part = "train" if training else {HELD_OUT: "held_out", HOLDOUT: "holdout"}.get(files, "all")
    patterns = data.files if files in (HELD_OUT, HOLDOUT) else files
    return instruct.pack_examples(
        patterns,
        template,
        tokenizer,
        limits,
        cache,
        reading,
        part=part,
        decoder_start=start,
        prompt_weight=weight if training else 0.0,
    )


def prompt_ids(model: ModelConfig, tokenizer, template: Template, text: str) -> list[int]:
    """Ids for generation from a prompt that a user types."""
    start = model.decoder_start_token_id if model.encoder_layers else None
    return Encoder(tokenizer, start).prompt(template.prompt(Record(instruction=text)))
