"""to_hf: export of parameters as a directory that transformers loads."""

import contextlib
import dataclasses
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Generator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from lm import families
from lm.families.family import SEQ2SEQ_TOKENS, Family, special_tokens_to_hf
from lm.families.table import Slot, expand
from lm.models import LanguageModel, ModelConfig, inputs
from lm.models.config import DTYPES, LM_HEADS, ConfigError
from lm.phases import phase
from lm.weights import sentences
from lm.weights.errors import WeightsError
from lm.weights.load import parameter_shapes
from lm.weights.sources import INDEX, SINGLE

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
)
MODEL_FILES += ("template.json", sentences.MODULES, sentences.POOLING, sentences.NORMALIZE)
# fields that affect computation or training, not the function computed
NOT_EXPORTED = (
    "dtype",
    "param_dtype",
    "layers",
    "attention_backend",
    "remat",
    "dropout",
    "ssm_chunk",
)


@phase("writing the weights")
def to_hf(
    model: LanguageModel,
    params: dict,
    path,
    tokenizer=None,
    *,
    generation: dict | None = None,
    max_shard_size: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Write a model as a Hugging Face directory at `path`.

    The files are config.json, generation_config.json, safetensors and those of the tokenizer.

    params: as returned by `from_hf` or held by training: stacked or separate layers, sharded or
    not, on devices of this process. Each tensor keeps its dtype.
    generation: settings such as temperature, for generation_config.json; its special tokens are
    replaced by the model's.
    max_shard_size: maximum bytes per weight file, unless one tensor is larger.

    The directory appears complete or not at all. If it holds a model, that model is replaced and
    other files stay. Any other directory that is not empty is refused unless `overwrite`.

    Raise ConfigError for a configuration that the Hugging Face class cannot express. Raise
    WeightsError for parameters that do not fit the model and for a directory that must not be
    overwritten. Both are raised before anything is written.
    """
    c = model.config
    family, hf = families.get(c.family).storing(c.head), exported_config(c)
    flat = flatten(params, c)
    slots = their_slots(family, c, flat)
    dtypes = sorted({str(x.dtype) for x in flat.values()})
    if not set(dtypes) <= set(DTYPES):
        raise WeightsError(
            f"parameters have dtypes {', '.join(dtypes)}; {', '.join(DTYPES)} can be exported"
        )
    if tokenizer is not None and (ids := inputs.id_count(tokenizer)) > c.vocab_size:
        raise WeightsError(
            f"the tokenizer has {ids} tokens, more than the model's vocabulary of {c.vocab_size}"
        )
    hf["dtype"] = hf["torch_dtype"] = str(flat["embeddings/token"].dtype)
    target = Path(path).expanduser().resolve()
    refuse_foreign(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as directory:
        write_json(directory / "config.json", hf)
        if c.head in ("causal_lm", "seq2seq_lm"):
            write_json(directory / "generation_config.json", generation_config(generation, c))
        for name, content in sentences.files(c).items() if c.head == "embedding" else ():
            (directory / name).parent.mkdir(exist_ok=True)
            write_json(directory / name, content)
        write_weights(directory, slots, flat, max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)


def generation_config(given: dict | None, c: ModelConfig) -> dict:
    """Content of generation_config.json: the given settings and the model's special tokens."""
    own, special = (
        {"_from_model_config", "transformers_version"},
        {"bos_token_id", "eos_token_id", "pad_token_id", *SEQ2SEQ_TOKENS},
    )
    settings = {name: value for name, value in (given or {}).items() if name not in own | special}
    return {
        **({} if settings else {"_from_model_config": True}),
        **settings,
        **special_tokens_to_hf(c),
    }


def exported_config(c: ModelConfig) -> dict:
    """Content of config.json for `c`.

    Raise ConfigError naming the fields that would be lost; reading the result back finds them.
    """
    hf = families.config_to_hf(c)
    back = families.config_from_hf(hf)
    compared = {f.name for f in dataclasses.fields(c)} - {*NOT_EXPORTED}
    # the tensors reveal these; an embedding's settings are written beside config.json
    if c.head in ("none", "embedding"):
        compared -= {"pooler", "normalize_embedding"} | (
            {"head"} if c.head == "embedding" else set()
        )
    if c.head != "sequence_classification" or c.pooler:  # `pooling` is not used
        compared -= {"pooling"}
    if c.layer_kinds == back.layer_kinds:  # several patterns give the same layers
        compared.discard("layer_pattern")
    pairs = [(name, getattr(c, name), getattr(back, name)) for name in sorted(compared)]
    lost = [
        f"{name}={ours!r} (would read back as {theirs!r})"
        for name, ours, theirs in pairs
        if ours != theirs
    ]
    if lost:
        raise ConfigError(
            f"{hf['architectures'][0]} cannot express this configuration: {'; '.join(lost)}"
        )
    return hf


def flatten(params: dict, c: ModelConfig) -> dict[str, Any]:
    """Flatten the parameters to arrays by path.

    Separate layers ("layers_0/...", also an encoder's) are stacked on the host.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    distant = [
        path for path, x in flat.items() if isinstance(x, jax.Array) and not x.is_fully_addressable
    ]
    if distant:
        raise WeightsError(
            f"{len(distant)} parameters, such as {distant[0]}, are spread over several processes: "
            "export from a checkpoint in one"
        )
    separate: dict[str, dict[int, Any]] = {}  # path in the stacked tree -> its layers by number
    numbered = {path: re.fullmatch(r"(encoder/|)layers_(\d+)/(.+)", path) for path in flat}
    for path, found in numbered.items() if c.layers == "separate" else ():
        if found:
            side, layer, inner = found[1], int(found[2]), found[3]
            block = f"block_{layer % c.period}/" if c.period > 1 and not side else ""
            separate.setdefault(f"{side}layers/{block}{inner}", {})[layer] = flat.pop(path)
    uneven = [
        path for path, layers in separate.items() if len({x.shape for x in layers.values()}) > 1
    ]
    if uneven:
        raise WeightsError(
            f"these parameters differ in shape from layer to layer: {', '.join(uneven)}"
        )
    flat |= {
        path: np.stack([layers[i] for i in sorted(layers)]) for path, layers in separate.items()
    }
    return flat


def their_slots(family: Family, c: ModelConfig, flat: dict) -> dict[str, Slot]:
    """Slots of all tensors to write, by name in the file."""
    shapes = parameter_shapes(c)
    missing, extra = sorted(set(shapes) - set(flat)), sorted(set(flat) - set(shapes))
    misshapen = [
        f"{p} is {list(flat[p].shape)}, expected {list(s)}"
        for p, s in shapes.items()
        if p in flat and flat[p].shape != s
    ]
    if missing or extra or misshapen:
        raise WeightsError(
            f"these parameters are not this model's: "
            f"missing {missing}, extra {extra}, misshapen {misshapen}"
        )
    try:
        slots = expand(family.table, shapes)
    except LookupError as error:
        raise ConfigError(
            f"a Hugging Face {family.model_type} model has no place for parts of this one: {error}"
        ) from error
    bare = c.head in ("none", "embedding")
    if not c.tie_embeddings and not bare and family.stored_copies:
        # a class with labels stores no copies for logits
        within = "" if c.head in LM_HEADS else family.prefix
        copies = {
            name: original
            for name, original in family.duplicates.items()
            if name.startswith(within)
        }
        slots |= {
            name: slots[original]
            for name, original in copies.items()
            if name not in slots and original in slots
        }
    return {
        name.removeprefix(family.prefix) if bare else name: slot for name, slot in slots.items()
    }


def write_weights(directory: Path, slots: dict[str, Slot], flat: dict, max_shard_size: int) -> None:
    """Write one file, or several files and their index.

    Host memory holds the tensors of one file and one stacked parameter.
    """
    sizes = {
        name: math.prod(slot.their_shape) * jnp.dtype(flat[slot.ours[0]].dtype).itemsize
        for name, slot in slots.items()
    }
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    many = len(shards) > 1
    files = [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" if many else SINGLE
        for i in range(len(shards))
    ]
    host = HostCopies(flat)
    for file, names in zip(files, shards, strict=True):
        tensors = {name: np.ascontiguousarray(host.theirs(slots[name])) for name in names}
        safetensors.numpy.save_file(tensors, directory / file, metadata={"format": "pt"})
        # safetensors makes the file readable by its owner only
        (directory / file).chmod((directory / "config.json").stat().st_mode)
    if many:
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        write_json(
            directory / INDEX,
            {
                "metadata": {"total_size": sum(sizes.values())},
                "weight_map": dict(sorted(weight_map.items())),
            },
        )


class HostCopies:
    """Host copies of parameters, each fetched from the devices once.

    Slots are read row by row, so only the parameters of the current row are kept.
    """

    def __init__(self, flat: dict):
        self.flat, self.paths, self.arrays = flat, (), []

    def theirs(self, slot: Slot) -> np.ndarray:
        if slot.ours != self.paths:
            self.paths, self.arrays = slot.ours, [np.asarray(self.flat[path]) for path in slot.ours]
        return slot.row.to_theirs([x if slot.entry is None else x[slot.entry] for x in self.arrays])


def write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_file(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in MODEL_FILES)


def refuse_foreign(target: Path, overwrite: bool) -> None:
    """Raise WeightsError unless the directory is absent, empty or a model, or `overwrite` is set.

    A file and the folder of a training run are always refused.
    """
    if target.exists() and not target.is_dir():
        raise WeightsError(f"{target} is a file: give a directory to write the model to")
    if (target / "checkpoints").is_dir():
        raise WeightsError(
            f"{target} is the folder of a training run, whose config.json an export would replace: "
            "choose another directory"
        )
    names = os.listdir(target) if target.exists() else []
    a_model = "config.json" in names and any(fnmatch(name, "*.safetensors") for name in names)
    if names and not a_model and not overwrite:
        raise WeightsError(
            f"{target} is not empty and holds no model: choose another directory, "
            "or pass overwrite=True to add the model to it"
        )


@contextlib.contextmanager
def replacing(target: Path) -> Generator[Path]:
    """Make a new directory that replaces `target` on success.

    Files of `target` that do not belong to a model are moved to the new directory.
    """
    stem = f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}"
    new, old = target.parent / f"{stem}.new", target.parent / f"{stem}.old"
    new.mkdir()
    try:
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    if old.exists():
        for entry in os.listdir(old):
            if not model_file(entry) and not (target / entry).exists():
                (old / entry).rename(target / entry)
        shutil.rmtree(old)
