"""from_hf: reading of a checkpoint into stacked parameters, one tensor at a time."""

import contextlib
import math
import re
from collections.abc import Generator
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from lm import families
from lm.families.family import Family
from lm.families.table import Row, Shape, Slot, expand
from lm.models import LanguageModel, ModelConfig, build
from lm.models.config import DTYPES, ConfigError
from lm.phases import phase
from lm.weights import sentences as sentence_transformers
from lm.weights.errors import WeightsError
from lm.weights.gguf import open_gguf
from lm.weights.resolve import HUB_ID, resolve
from lm.weights.sources import FLOATS, Source, holds_weights, open_safetensors, read_json


def from_hf(
    path_or_id, dtype: str | None = None, head: str | None = None
) -> tuple[LanguageModel, dict]:
    """Read a model and its parameters from a Hugging Face directory, hub id or .gguf file.

    The directory holds config.json and safetensors, sharded or not.

    dtype: of parameters and computation: "float32" (the default), "bfloat16" or "float16". Stored
    values are cast to it.
    head: replaces the head in config.json (see `ModelConfig`), for example "none" or "embedding"
    for a language model, or "value" for a reward model with one label. Tensors of the stored head
    that the new head does not use are skipped; tensors the new head needs must be stored. A
    sentence-transformers directory has the head "embedding". `lm.with_head` adds a new,
    untrained head.

    Return (model, params); params is a nested dict of arrays with the layers stacked on axis 0.
    Files are opened once and read tensor by tensor: peak memory is the parameters plus one stacked
    tensor, not counting mapped file pages.

    Raise ConfigError for an unsupported model type or option, before any weight is read. Raise
    WeightsError for absent or damaged files, and for tensors that do not fit the configuration, all
    of which are listed.
    """
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype={dtype!r} is unknown; one of {', '.join(DTYPES)}")
    with (
        phase(f"loading the weights of {path_or_id}"),
        open_checkpoint(path_or_id, head) as (config, rows, family, source),
    ):
        config = config.replace(dtype=dtype or "float32", param_dtype=dtype or "float32")
        return build(config), read_params(
            source, rows, family, parameter_shapes(config), config.param_dtype
        )


@contextlib.contextmanager
def open_checkpoint(
    path_or_id, head: str | None = None
) -> Generator[tuple[ModelConfig, tuple[Row, ...], Family, Source]]:
    """Open a checkpoint: configuration, table, family, and tensors under the table's names."""
    if not Path(path_or_id).expanduser().exists() and HUB_ID.fullmatch(str(path_or_id)):
        asked_config(resolve(path_or_id, weights=False), head)  # checked before the large download
    path = resolve(path_or_id)
    if path.is_file():
        with open_gguf(path) as (hf, source):
            family = families.get(hf["model_type"])
            stored = families.config_from_hf(hf)
            config = stored if head in (None, stored.head) else families.other_head(stored, head)
            rows = family.gguf_table
            yield (
                config,
                rows,
                family,
                source if config == stored else source.without(head_names(rows)),
            )
        return
    stored, config = asked_config(path, head)
    family = families.get(stored.family)
    with open_safetensors(path) as source:
        if family.refine:
            stored, config = (
                family.refine(stored, source.shapes),
                family.refine(config, source.shapes),
            )
        asked, family = family.storing(config.head), family.storing(stored.head)
        source = canonical(source, family, stored)
        if config.head == stored.head:
            yield config, family.table, family, source
            return
        headless = config.head in ("none", "embedding")
        rows = (
            *(r for r in family.table if not r.of_head),
            *(r for r in asked.table if r.of_head and not headless),
        )
        yield config, rows, family, source.without(head_names(family.table) - head_names(rows))


def head_names(rows: tuple[Row, ...]) -> set[str]:
    return {r.theirs for r in rows if r.of_head}


def asked_config(directory: Path, head: str | None) -> tuple[ModelConfig, ModelConfig]:
    """Return the stored configuration and the one to read the weights with.

    The second has the requested head, or the embedding head of a sentence-transformers directory.
    """
    stored = read_config(directory)
    sentences = sentence_transformers.read(directory) if head in (None, "embedding") else None
    if head in (None, stored.head) and sentences is None:
        return stored, stored
    if head == "value" and (stored.head, stored.pooling) != ("sequence_classification", "last"):
        raise ConfigError(
            f"{directory} holds a model with head={stored.head!r}: "
            "only a classifier of the last token gives each a value"
        )
    return stored, families.other_head(stored, head or "embedding", **sentences or {})


def read_config(directory: Path) -> ModelConfig:
    """Read config.json, with the special tokens of generation_config.json.

    Generation obeys generation_config.json where the two differ.
    """
    refuse_other_folders(directory)
    hf = read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    if generation.is_file():
        given = read_json(generation)
        inherited = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        hf |= {name: given[name] for name in inherited if given.get(name) is not None}
        # a token that generation_config.json does not force is not forced
        hf |= {name: given.get(name) for name in ("forced_bos_token_id", "forced_eos_token_id")}
    try:
        return families.config_from_hf(hf)
    except ConfigError as error:
        raise ConfigError(f"{directory}: {error}") from error


def refuse_other_folders(directory: Path) -> None:
    """Raise WeightsError for a folder that holds no Hugging Face model.

    The message says how to read what the folder holds.
    """
    config = directory / "config.json"
    if (
        (directory / "checkpoints").is_dir()
        and (directory / "model" / "config.json").is_file()
        and not holds_weights(directory)
    ):
        raise WeightsError(
            f"{directory} is the folder of a training run: read it with lm.load({str(directory)!r})"
        )
    if config.is_file():
        return
    if (directory / "adapter_config.json").is_file():
        raise WeightsError(
            f"{directory} is an adapter: "
            f"lm.load({str(directory)!r}) reads it together with its base"
        )
    files = sorted(path.name for path in directory.glob("*.gguf"))
    below = sorted(str(path.parent) for path in directory.glob("*/config.json"))
    instead = (
        f"; give the path of its file {files[0]}"
        if files
        else f"; did you mean {below[0]}?"
        if below
        else ": is it a model directory?"
    )
    raise WeightsError(f"{directory} has no config.json{instead}")


def canonical(source: Source, family: Family, config: ModelConfig) -> Source:
    """Rename the tensors to the names in the family's table.

    Names of older versions are updated and an omitted prefix is restored.
    """
    slots = expand(family.table, parameter_shapes(config))
    known = {*slots, *family.duplicates}

    def rename(name: str) -> str:
        for pattern, replacement in family.renames.items():
            name = re.sub(pattern, replacement, name)
        return family.prefix + name if family.prefix + name in known else name

    return source.renamed(rename)


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shapes of the parameters of a model, by path, layers stacked. Nothing is computed."""
    abstract = build(config.replace(layers="scan")).shapes()
    return {path: x.shape for path, x in flax.traverse_util.flatten_dict(abstract, sep="/").items()}


def read_params(
    source: Source, rows: tuple[Row, ...], family: Family, shapes: dict[str, Shape], dtype: str
) -> dict:
    """Read the nested dict of parameters. Names, shapes and dtypes are checked first."""
    try:
        slots = expand(rows, shapes)
    except LookupError as error:
        raise WeightsError(
            f"{source.where}: a stored {family.model_type} model cannot have parts of the one "
            f"asked for: {error}"
        ) from error
    check(source, slots, family)
    params, stacks = {}, {}
    for name, slot in slots.items():
        parts = slot.row.to_ours(source.read(name), slot.our_shapes)
        for path, part in zip(slot.ours, parts, strict=True):
            if path not in stacks:
                stacks[path] = aligned(shapes[path], jnp.dtype(dtype))
            stacks[path][... if slot.entry is None else slot.entry] = part
        if slot.entry is None or slot.entry == shapes[slot.ours[0]][0] - 1:
            params |= {path: jax.device_put(stacks.pop(path)) for path in slot.ours}
    check_duplicates(source, slots, family, params)
    return flax.traverse_util.unflatten_dict(params, sep="/")


def aligned(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Allocate an array aligned to 64 bytes, which JAX on a CPU uses without a copy."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


def check(source: Source, slots: dict[str, Slot], family: Family) -> None:
    """Raise WeightsError if the tensors do not fit the slots.

    The message lists every missing, extra and misshapen tensor, and every one that is not floating
    point.
    """
    expendable = lambda name: (
        name in family.duplicates or any(re.fullmatch(pattern, name) for pattern in family.ignored)
    )
    missing = [name for name in slots if name not in source.shapes]
    extra = [name for name in source.shapes if name not in slots and not expendable(name)]
    both = [name for name in slots if name in source.shapes]
    misshapen = [
        f"{name} is {list(source.shapes[name])}, expected {list(slots[name].their_shape)}"
        for name in both
        if source.shapes[name] != slots[name].their_shape
    ]
    strange = [
        f"{name} is {source.dtypes[name]}, expected one of {', '.join(FLOATS)}"
        for name in both
        if source.dtypes[name] not in FLOATS
    ]
    problems = (
        ("missing", missing),
        ("extra", extra),
        ("misshapen", misshapen),
        ("not floating point", strange),
    )
    if any(found for _, found in problems):
        listed = "".join(
            f"\n  {len(found)} {kind}: {'; '.join(found)}" for kind, found in problems if found
        )
        raise WeightsError(
            f"the tensors of {source.where} are not those of the {family.model_type} model "
            f"in its configuration:{listed}"
        )


def check_duplicates(source: Source, slots: dict[str, Slot], family: Family, params: dict) -> None:
    """Raise WeightsError if a stored copy differs from its original.

    Such a model is untied, whatever config.json says.
    """
    for name, original in family.duplicates.items():
        if name not in source.shapes or name in slots or original not in slots:
            continue
        ours = slots[original].row.to_theirs(
            [np.asarray(params[path]) for path in slots[original].ours]
        )
        if source.shapes[name] != ours.shape or not np.array_equal(
            source.read(name).astype(ours.dtype), ours, equal_nan=True
        ):
            raise WeightsError(
                f"{source.where}: {name} differs from {original}, but the configuration ties them; "
                "if they are meant to differ, and one of them is the head, "
                'set "tie_word_embeddings": false in config.json'
            )
