"""Check a training config before data is read or anything is compiled."""

import dataclasses
import math
import types
import typing
from collections.abc import Collection

import ml_collections
from ml_collections import config_dict

from lm import tasks
from lm.adaptation import plan
from lm.distributed import mesh as meshes
from lm.distributed import sharding
from lm.models import inputs
from lm.models.config import ConfigError, ModelConfig, nearest
from lm.training import optimizer, scheduled, schedules, trackers
from lm.training import parts as parts_of_run
from lm.training.parts import Part, Parts
from lm.training.step import REDUCE

Config = ml_collections.ConfigDict

POSITIVE = (
    "steps",
    "batch_size",
    "length",
    "accumulate",
    "log.every",
    "checkpoint.every",
    "checkpoint.keep",
    "samples.tokens",
)
NOT_NEGATIVE = (
    "seed",
    "data.synthetic_rows",
    "eval.every",
    "eval.max_rows",
    "samples.every",
)

MODEL = ModelConfig(  # default of config.model: a small Llama
    family="llama",
    vocab_size=1,
    d_model=256,
    n_layers=4,
    n_heads=4,
    n_kv_heads=4,
    head_dim=64,
    d_ff=704,
    max_length=1024,
)


def model_section(config: ModelConfig) -> Config:
    """Make a config's `model` section from ModelConfig, for --config.model.FIELD=..."""
    section = Config()
    hints = typing.get_type_hints(ModelConfig)
    for field in dataclasses.fields(ModelConfig):
        value, hint = getattr(config, field.name), hints[field.name]
        optional = isinstance(hint, types.UnionType)
        section[field.name] = (
            config_dict.placeholder(typing.get_args(hint)[0])
            if optional and value is None
            else value
        )
    return section


def model_config(section: Config, tokenizer) -> ModelConfig:
    """Make the ModelConfig of a config's `model` section.

    vocab_size 0 and the ids of special tokens come from the tokenizer, if there is one. The
    vocabulary is rounded up to a multiple of 64, for matrix units and sharding. Raises ConfigError.
    """
    fields = section.to_dict()
    if tokenizer is not None:
        ids = inputs.id_count(tokenizer)
        fields["vocab_size"] = fields["vocab_size"] or -(-ids // 64) * 64
        if fields["vocab_size"] < ids:
            raise ConfigError(
                f"model.vocab_size={fields['vocab_size']} cannot hold the tokenizer's {ids} "
                "tokens; set it to 0"
            )
        pad, ends = fields["pad_token_id"], fields["eos_token_ids"] or ()
        fields |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
        fields["eos_token_ids"] = (
            () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        )
        start, last = fields["decoder_start_token_id"], fields["forced_eos_token_id"]
        if start is not None:  # T5 starts from its padding token, BART from its end-of-text token
            its_pad = start == pad and start not in ends and tokenizer.pad_token_id is not None
            fields["decoder_start_token_id"] = (
                tokenizer.pad_token_id if its_pad else tokenizer.eos_token_id
            )
        fields["forced_eos_token_id"] = None if last is None else tokenizer.eos_token_id
    elif not fields["vocab_size"]:
        raise ConfigError(
            "model.vocab_size=0 means the tokenizer's, and there is none; set one of them"
        )
    return ModelConfig(**fields)


def variant(config: Config, name: str, **known: dict) -> Config:
    """Apply a variant to the config. known: name -> {"dotted.field": value}.

    '' leaves the config unchanged. Raises ConfigError for an unknown name.
    """
    if name and name not in known:
        raise ConfigError(
            f"variant {name!r} is unknown{nearest(name, known)}; this config has "
            f"{', '.join(known) or 'none'}"
        )
    config.update_from_flattened_dict(known.get(name, {}))
    return config


def check(config: Config, devices: int) -> Parts:
    """Return the parts of the run, or raise ConfigError when the config is invalid.

    devices: their number, which it must fit. The message names the field, its value and what was
    expected.
    """
    for name in POSITIVE:
        if _get(config, name) < 1:
            raise ConfigError(f"{name}={_get(config, name)}: expected a number of at least 1")
    for name in NOT_NEGATIVE:
        if _get(config, name) < 0:
            raise ConfigError(f"{name}={_get(config, name)}: expected 0 or more")
    optimizer.check(config.optimizer, config.steps)
    trackers.check_wandb(config.log.wandb)
    if config.optimizer.rounding != "master" and config.model.param_dtype != "bfloat16":
        raise ConfigError(
            f"optimizer.rounding={config.optimizer.rounding!r} would be ignored: it is for "
            "model.param_dtype='bfloat16', "
            f"not {config.model.param_dtype!r}; leave it at 'master'"
        )
    plan.check(config.adaptation, config.init_from)
    _check_holdout(config)
    parts = parts_of_run.of(config)
    parts.check()
    for part in parts.read:
        _check_data(part.config.data, part.task)
    if bool(config.data.files or config.data.mixture) == bool(config.data.synthetic_rows):
        raise ConfigError(
            "set data.files (paths or globs of text or JSONL), or data.synthetic_rows for random "
            "tokens, and not both"
        )
    if not config.tokenizer and not config.init_from and not config.data.synthetic_rows:
        raise ConfigError(
            "tokenizer is not set: give a folder, a hub id, a .gguf file, or 'bytes'; python -m "
            "lm.train_tokenizer trains one"
        )
    if (
        not config.tokenizer
        and not config.init_from
        and (config.samples.prompts or any(config.eval.data.values()))
    ):
        raise ConfigError(
            "samples.prompts and eval.data hold text, which needs a tokenizer: set one, or leave "
            "them empty"
        )
    for part in () if config.init_from else parts.batches.values():
        check_length(part, config.model.max_length)
        if not part.task.makes_head:
            check_head(part, config.model.head)
    if config.model.dtype == "float16" or config.model.param_dtype == "float16":
        raise ConfigError(
            "model.dtype='float16' cannot be trained here: its gradients underflow without loss "
            "scaling; use 'bfloat16'"
        )
    for table in ("parameters", "activations"):
        sharding.check_types(config.sharding[table], table)
    if (reduce := config.sharding.get("reduce", REDUCE[0])) not in REDUCE:
        raise ConfigError(
            f"sharding.reduce={reduce!r} is unknown{nearest(str(reduce), REDUCE)}; one of "
            f"{', '.join(REDUCE)}"
        )
    for part in parts.batches.values():
        _check_batch(part.config, devices)
    scheduled.check(config)
    return parts


def _check_holdout(config: Config) -> None:
    share = config.data.holdout_share
    if not 0 <= share < 1:
        raise ConfigError(
            f"data.holdout_share={share}: expected a share of the documents, from 0 to below 1"
        )
    if share and (config.data.mixture or config.data.synthetic_rows):
        raise ConfigError(
            f"data.holdout_share={share} is of data.files; with data.mixture or synthetic rows, "
            "name files in eval.data"
        )
    if share and config.eval.data.get("holdout"):
        raise ConfigError(
            "eval.data.holdout is what data.holdout_share is evaluated as; give the other files "
            "another name"
        )


def shortened(config: Config) -> str:
    """Message when a run is too short for its warm-up, or ''."""
    given = config.optimizer.warmup
    used = schedules.warmup_within(given, config.steps)
    return (
        f"optimizer.warmup={given} is shortened to {used} updates, half of steps={config.steps}"
        if used < given
        else ""
    )


def check_model(parts: Parts, model: ModelConfig, tokenizer, used: Collection[str]) -> None:
    """Raise ConfigError when the model that was made or loaded does not fit the config.

    used: as in `check_ignored`.
    """
    for part in (parts.main, *parts.read):
        check_head(part, model.head)
        check_length(part, model.max_length)
    if tokenizer is not None and (ids := inputs.id_count(tokenizer)) > model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {ids} tokens and the model's vocabulary {model.vocab_size}; they "
            "do not belong together"
        )
    config = parts.main.config
    if config.init_from:
        check_ignored(config.model, model, used)


def check_ignored(section: Config, loaded: ModelConfig, used: Collection[str]) -> None:
    """Raise ConfigError, naming the fields, when `model` differs from the model of init_from.

    used: fields of `model` that apply with init_from. Fields at their defaults are ignored, and so
    is max_length.
    """
    defaults = model_section(MODEL).to_dict() | {"vocab_size": 0}
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    asked = {
        name: value
        for name, value in section.to_dict().items()
        if name not in (*used, "max_length")
    }
    ignored = [
        f"model.{name}={value!r} (it has {getattr(loaded, name)!r})"
        for name, value in asked.items()
        if plain(value) not in (plain(defaults[name]), plain(getattr(loaded, name)))
    ]
    if ignored:
        raise ConfigError(
            "init_from brings a model of its own, so that these would be ignored: "
            f"{', '.join(ignored)}; leave them at their defaults (a "
            "config that starts from configs/defaults.py sets none), or drop init_from. Of "
            f"model only {', '.join(used)} count with it"
        )


def check_length(part: Part, most: int) -> None:
    """Raise ConfigError when the task makes documents longer than `most` tokens."""
    length = part.config.length
    longest = part.task.longest(length)
    if longest > most:
        of = "" if longest == length else f" makes documents of {longest} tokens, which"
        raise ConfigError(
            f"length={length}{of} is more than model.max_length={most}; lower one or "
            "raise the other"
        )


def check_head(part: Part, head: str) -> None:
    """Raise ConfigError when the task is not defined for a model with this head."""
    name, heads = part.task.name, part.task.heads
    if head not in heads:
        others = [other for other, kind in tasks.TASKS.items() if head in kind.heads]
        hint = f"; tasks for this model: {', '.join(others)}" if others else ""
        raise ConfigError(
            f"model.head={head!r}: the task {name!r} needs {' or '.join(map(repr, heads))}{hint}"
        )
    if part.config.samples.prompts and "causal_lm" not in heads:
        raise ConfigError(
            f"samples.prompts are texts to continue, which the task {name!r} does not "
            "teach; leave them empty"
        )


def _check_data(data: Config, task) -> None:
    if not 0 <= data.max_bad_share < 1:
        raise ConfigError(
            f"data.max_bad_share={data.max_bad_share}: expected a share from 0 to less than 1"
        )
    if data.synthetic_rows and not task.synthetic:
        raise ConfigError(
            f"data.synthetic_rows={data.synthetic_rows}: the task {task.name!r} does not learn "
            "from random tokens; set data.files"
        )


def _check_batch(config: Config, devices: int) -> None:
    sizes = meshes.resolve(config.mesh.to_dict(), devices)
    if config.batch_size % config.accumulate:
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide by accumulate={config.accumulate}: "
            "micro-batches must be equal"
        )
    micro, axes = config.batch_size // config.accumulate, tuple(config.sharding.activations.batch)
    parts = math.prod(sizes.get(axis, 1) for axis in axes)
    if micro % parts:
        raise ConfigError(
            f"batch_size={config.batch_size} / accumulate={config.accumulate} = {micro} rows do "
            "not divide over "
            f"{' x '.join(f'mesh.{axis}' for axis in axes)} = {parts}; make batch_size a "
            f"multiple of {parts * config.accumulate}"
        )
    shards = sizes.get("sequence", 1)
    if config.length % shards:
        raise ConfigError(
            f"length={config.length} does not divide over mesh.sequence={shards}: make length a "
            f"multiple of {shards} (next that fits: {-(-config.length // shards) * shards}), or "
            f"set mesh.sequence={math.gcd(config.length, shards)}"
        )


def _get(config: Config, dotted: str):
    for name in dotted.split("."):
        config = config[name]
    return config
