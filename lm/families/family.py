"""Family: the exchange of one model type with Hugging Face, and helpers to read config.json."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lm.families.heads import LabelHead
from lm.families.table import Row
from lm.models.config import ConfigError, ModelConfig, nearest

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
SEQ2SEQ_TOKENS = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@dataclasses.dataclass(frozen=True)
class Family:
    """One Hugging Face `model_type`.

    config_from_hf maps config.json, as a dict, to a ModelConfig, or raises ConfigError naming the
    unsupported option. config_to_hf is its inverse.
    """

    model_type: str
    # Hugging Face class -> head, except the classes in `labels`; the first is the default where
    # config.json names none
    architectures: Mapping[str, str]
    table: tuple[Row, ...]  # Hugging Face names are those stored by the first architecture
    config_from_hf: Callable[[dict], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict]
    presets: Mapping[str, ModelConfig]
    prefix: str = ""  # name prefix that a model without a head omits
    # regular expression -> replacement, for tensor names of older checkpoints
    renames: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # regular expressions: tensors to skip unless a row claims them
    ignored: tuple[str, ...] = ()
    # tensor name of a copy -> the tensor it must equal
    duplicates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # the Hugging Face class, when untied, stores the copies as parameters of their own (T5's does
    # not)
    stored_copies: bool = True
    # sets config fields that only the tensor names reveal
    refine: Callable[[ModelConfig, Collection[str]], ModelConfig] | None = None
    # the same weights under llama.cpp's names; () = not read from GGUF
    gguf_table: tuple[Row, ...] = ()
    labels: tuple[LabelHead, ...] = ()  # classes with label heads
    # class without a head of an encoder-decoder's encoder, "" if there is none
    encoder: str = ""

    def of(self, c: ModelConfig) -> "Family":
        """Copy this family with the classes of an encoder alone if `c` is an encoder-decoder's."""
        if c.encoder_layers or "seq2seq_lm" not in self.architectures.values():
            return self
        return dataclasses.replace(
            self,
            architectures={self.encoder: "none"} if self.encoder else {},
            labels=tuple(x for x in self.labels if self.encoder and x.base == self.encoder),
        )

    def labelled(self, name: str) -> LabelHead | None:
        """Find the label head with this name: a Hugging Face class or one of our heads.

        A value head is read and written as regression.
        """
        name = "sequence_classification" if name == "value" else name
        return next((x for x in self.labels if name in (x.architecture, x.head)), None)

    def bare(self) -> str:
        """Hugging Face class without a head."""
        return next(name for name, kind in self.architectures.items() if kind == "none")

    def classes(self, kind: str) -> list[str]:
        """Hugging Face classes for one of our heads.

        An embedding model uses the class without a head; a value head has no class.
        """
        found = self.labelled(kind) if kind != "value" else None
        named = [
            name
            for name, head in self.architectures.items()
            if head == ("none" if kind == "embedding" else kind)
        ]
        return named + ([found.architecture] if found else [])

    def storing(self, kind: str) -> "Family":
        """Copy this family with the tensor names that its class for head `kind` stores."""
        found = self.labelled(kind)
        if found is None:
            return self
        prefix = self.prefix if found.prefix is None else found.prefix
        move = lambda name: (
            prefix + name.removeprefix(self.prefix) if name.startswith(self.prefix) else name
        )
        return dataclasses.replace(
            self,
            prefix=prefix,
            table=tuple(
                dataclasses.replace(r, theirs=move(r.theirs), first=r.first and move(r.first))
                for r in self.table
                if not r.of_head
            )
            + found.table,
            ignored=(*self.ignored, *(re.escape(prefix) + pattern for pattern in self.ignored)),
            duplicates={move(copy): move(original) for copy, original in self.duplicates.items()},
        )


def value(hf: dict, name: str) -> Any:
    """Read a field of config.json that has no default; ConfigError if it is missing."""
    if hf.get(name) is None:
        raise ConfigError(
            f"config.json of this {hf.get('model_type')!r} model has no {name!r}; "
            "is the file complete?"
        )
    return hf[name]


def expect(hf: dict, **allowed: Any) -> None:
    """Raise ConfigError for options whose value is unsupported; absent and null are accepted."""
    for name, good in allowed.items():
        found = hf.get(name)
        if found is not None and found != good:
            raise ConfigError(
                f"{name}={found!r} is not supported for model_type {hf.get('model_type')!r}; "
                f"only {good!r} is"
            )


def activation(hf: dict, name: str, default: str) -> str:
    """Translate the activation function named in config.json to our name."""
    theirs = hf.get(name) or default
    if theirs not in ACTIVATION_NAMES:
        raise ConfigError(
            f"{name}={theirs!r} is not supported{nearest(str(theirs), ACTIVATION_NAMES)}; "
            f"one of {', '.join(ACTIVATION_NAMES)}"
        )
    return ACTIVATION_NAMES[theirs]


def their_activation(ours: str) -> str:
    """First Hugging Face name of one of our activation functions."""
    return next(theirs for theirs, name in ACTIVATION_NAMES.items() if name == ours)


def head(hf: dict, architectures: Mapping[str, str]) -> str:
    """Our head for config.json's `architectures`."""
    named = hf.get("architectures") or [next(iter(architectures))]
    known = [name for name in named if name in architectures]
    if not known:
        raise ConfigError(
            f"architectures={named} is not supported for model_type {hf.get('model_type')!r}; "
            f"one of {', '.join(architectures)}"
        )
    return architectures[known[0]]


def special_tokens(hf: dict) -> dict[str, Any]:
    """Read the bos, eos and pad token ids.

    Ids outside the vocabulary are dropped: small random models keep those of a big one.
    """
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
    """Read `special_tokens` and the forced first and last tokens of an encoder-decoder."""
    ids = {name: hf.get(name) for name in SEQ2SEQ_TOKENS}
    for name, i in ids.items():
        if not isinstance(i, int | None):
            raise ConfigError(
                f"{name}={i!r} is not supported for model_type {hf.get('model_type')!r}; "
                "a single token id is"
            )
    valid = range(value(hf, "vocab_size"))
    return special_tokens(hf) | {name: i if i in valid else None for name, i in ids.items()}


def special_tokens_to_hf(c: ModelConfig) -> dict[str, Any]:
    """Special-token fields of config.json and generation_config.json."""
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
