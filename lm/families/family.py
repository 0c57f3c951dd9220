"""Family: everything needed to exchange one model type with Hugging Face; and helpers to read its config.json."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lm.families.heads import LabelHead
from lm.families.table import Row
from lm.models.config import ConfigError, ModelConfig, nearest

ACTIVATION_NAMES = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "swish": "silu", "relu": "relu",
}  # fmt: skip
SEQ2SEQ_TOKENS = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@dataclasses.dataclass(frozen=True)
class Family:
    """One Hugging Face `model_type`.

    config_from_hf(config.json as a dict) -> ModelConfig, or ConfigError naming the option that is not supported;
    config_to_hf(ModelConfig) -> dict is its inverse.
    """

    model_type: str
    architectures: Mapping[
        str, str
    ]  # their class -> our head, but those of `labels`; the first is meant when config.json names none
    table: tuple[Row, ...]  # with their names as the first architecture stores them
    config_from_hf: Callable[[dict], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict]
    presets: Mapping[str, ModelConfig]
    prefix: str = ""  # of the names that a model without a head stores without it
    renames: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # regular expression -> replacement, for names of older checkpoints
    ignored: tuple[
        str, ...
    ] = ()  # regular expressions: tensors without information for us, if no row claims them
    duplicates: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # copies: their name -> the tensor it must equal
    stored_copies: bool = True  # their class, when untied, has them as parameters of its own (T5's shares its tables all the same)
    refine: Callable[[ModelConfig, Collection[str]], ModelConfig] | None = (
        None  # what only the tensor names tell
    )
    gguf_table: tuple[
        Row, ...
    ] = ()  # the same weights under llama.cpp's names; () if not read from GGUF
    labels: tuple[LabelHead, ...] = ()  # classes with heads that give labels

    def labelled(self, name: str) -> LabelHead | None:
        """The label head with this name, theirs of the class or ours; a value is read and written as a regression is."""
        name = "sequence_classification" if name == "value" else name
        return next((x for x in self.labels if name in (x.architecture, x.head)), None)

    def bare(self) -> str:
        """Their class without a head."""
        return next(name for name, kind in self.architectures.items() if kind == "none")

    def classes(self, kind: str) -> list[str]:
        """Their classes for one of our heads; an embedding is of the class without a head, a value has none."""
        found = self.labelled(kind) if kind != "value" else None
        named = [
            name
            for name, head in self.architectures.items()
            if head == ("none" if kind == "embedding" else kind)
        ]
        return named + ([found.architecture] if found else [])

    def storing(self, kind: str) -> "Family":
        """This family with the names under which its class for one of our heads stores the weights."""
        found = self.labelled(kind)
        if found is None:
            return self
        prefix = self.prefix if found.prefix is None else found.prefix
        move = lambda name: (
            prefix + name.removeprefix(self.prefix) if name.startswith(self.prefix) else name
        )
        return dataclasses.replace(
            self, prefix=prefix, table=tuple(dataclasses.replace(r, theirs=move(r.theirs), first=r.first and move(r.first))
                                             for r in self.table if not r.of_head) + found.table,
            ignored=(*self.ignored, *(re.escape(prefix) + pattern for pattern in self.ignored)),
            duplicates={move(copy): move(original) for copy, original in self.duplicates.items()},
        )  # fmt: skip


def value(hf: dict, name: str) -> Any:
    """A field of config.json that has no default."""
    if hf.get(name) is None:
        raise ConfigError(
            f"config.json of this {hf.get('model_type')!r} model has no {name!r}; is the file complete?"
        )
    return hf[name]


def expect(hf: dict, **allowed: Any) -> None:
    """Refuses, by name, options whose value changes the model in a way ours cannot follow; absent and null are fine."""
    for name, good in allowed.items():
        found = hf.get(name)
        if found is not None and found != good:
            raise ConfigError(
                f"{name}={found!r} is not supported for model_type {hf.get('model_type')!r}; only {good!r} is"
            )


def activation(hf: dict, name: str, default: str) -> str:
    """Our name of an activation function."""
    theirs = hf.get(name) or default
    if theirs not in ACTIVATION_NAMES:
        raise ConfigError(
            f"{name}={theirs!r} is not supported{nearest(str(theirs), ACTIVATION_NAMES)}; one of {', '.join(ACTIVATION_NAMES)}"
        )
    return ACTIVATION_NAMES[theirs]


def their_activation(ours: str) -> str:
    """The first of their names for one of our activation functions."""
    return next(theirs for theirs, name in ACTIVATION_NAMES.items() if name == ours)


def head(hf: dict, architectures: Mapping[str, str]) -> str:
    """Our head for config.json's `architectures`."""
    named = hf.get("architectures") or [next(iter(architectures))]
    known = [name for name in named if name in architectures]
    if not known:
        raise ConfigError(
            f"architectures={named} is not supported for model_type {hf.get('model_type')!r}; one of {', '.join(architectures)}"
        )
    return architectures[known[0]]


def special_tokens(hf: dict) -> dict[str, Any]:
    """bos, eos and pad ids. Ids outside the vocabulary (small random models keep a big model's) can never occur: left out."""
    valid = lambda i: isinstance(i, int) and 0 <= i < value(hf, "vocab_size")
    eos = hf.get("eos_token_id")
    eos = eos if isinstance(eos, list) else [eos]
    one = lambda name: hf.get(name) if valid(hf.get(name)) else None
    return dict(
        bos_token_id=one("bos_token_id"),
        eos_token_ids=tuple(filter(valid, eos)),
        pad_token_id=one("pad_token_id"),
    )


def seq2seq_tokens(hf: dict) -> dict[str, Any]:
    """`special_tokens` and those that an encoder-decoder's answers begin and end with."""
    ids = {name: hf.get(name) for name in SEQ2SEQ_TOKENS}
    for name, i in ids.items():
        if not isinstance(i, int | None):
            raise ConfigError(
                f"{name}={i!r} is not supported for model_type {hf.get('model_type')!r}; a single token id is"
            )
    valid = range(value(hf, "vocab_size"))
    return special_tokens(hf) | {name: i if i in valid else None for name, i in ids.items()}


def special_tokens_to_hf(c: ModelConfig) -> dict[str, Any]:
    """The fields of config.json and generation_config.json for the special tokens."""
    eos, names = list(c.eos_token_ids), SEQ2SEQ_TOKENS if c.encoder_layers else ()
    common = dict(
        bos_token_id=c.bos_token_id,
        eos_token_id=(eos[0] if len(eos) == 1 else eos or None),
        pad_token_id=c.pad_token_id,
    )
    return common | {
        name: getattr(c, name)
        for name in names
        if getattr(c, name) is not None or name != "forced_bos_token_id"
    }
