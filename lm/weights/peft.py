"""Read and write LoRA adapters as PEFT directories, for every family.

A directory has adapter_config.json and adapter_model.safetensors. The family's weight table maps
our kernels to Hugging Face modules. If a module holds several of our kernels (GPT-2's c_attn), its
A stacks the rows of all, and its B is block-diagonal.
"""

import dataclasses
import json
import math
from pathlib import Path

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from lm import families
from lm.adaptation import lora as low_rank
from lm.adaptation.lora import Lora
from lm.distributed.rules import by_path
from lm.families.table import Slot, expand
from lm.models.config import ConfigError
from lm.models.matrices import matrix
from lm.weights.load import parameter_shapes
from lm.weights.peft_config import CONFIG, rank_of, read_config, scale_of, targeted
from lm.weights.resolve import refused

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
TASKS = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "none": "FEATURE_EXTRACTION",
    "embedding": "FEATURE_EXTRACTION",
}


@dataclasses.dataclass(frozen=True)
class Module:
    """One Hugging Face linear layer, made of one or more of our kernels (its parts).

    inputs: int [in], our input index of each of its inputs. outputs: int [out, 2], for each of its
    outputs (part, our output index in that part).
    """

    slot: Slot
    inputs: np.ndarray
    outputs: np.ndarray
    transposed: bool  # stored as [in, out], like GPT-2's Conv1D


def modules(model) -> dict[str, Module]:
    """Map Hugging Face name -> Module for every linear layer made of our kernels.

    Raises ConfigError for models with separate layers, and without a Hugging Face class.
    """
    c = model.config
    if c.layers == "separate":
        raise ConfigError("adapters are exchanged for stacked layers: leave model.layers at 'scan'")
    families.class_of(c)
    axes, family = by_path(model.logical_axes()), families.get(c.family).storing(c.head)
    found = {}
    for name, slot in expand(family.table, parameter_shapes(c)).items():
        kernels = [matrix(path, axes[path]) for path in slot.ours]
        if not name.endswith(".weight") or not all(kernels):
            continue
        # Number the entries of our kernels; their places in the Hugging Face weight show which
        # input and output each connects.
        shapes = [
            (math.prod(s[d - len(m.stacked)] for d in m.inputs), s)
            for m, s in zip(kernels, slot.our_shapes, strict=True)
            if m
        ]
        sizes = [math.prod(s) for _, s in shapes]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        numbers = [
            np.arange(size).reshape(s) + start
            for size, (_, s), start in zip(sizes, shapes, starts, strict=False)
        ]
        theirs = np.asarray(slot.row.to_theirs(numbers))
        part = np.searchsorted(starts, theirs, side="right") - 1
        widths = np.array([size // inputs for size, (inputs, _) in zip(sizes, shapes, strict=True)])
        i, o = np.divmod(theirs - starts[part], widths[part])
        transposed = bool(theirs.shape[0] > 1 and (i[:, 0] != i[0, 0]).any())
        if transposed:
            i, o, part = i.T, o.T, part.T
        if (i != i[:1]).any() or (o != o[:, :1]).any():
            raise ConfigError(
                f"{name} is not one linear map of our kernels, and cannot be adapted in their "
                "format"
            )
        if c.head in ("none", "embedding"):
            name = name.removeprefix(family.prefix)  # the class without a head
        found[name.removesuffix(".weight")] = Module(
            slot, i[0], np.stack([part[:, 0], o[:, 0]], axis=1), transposed
        )
    return found


def save(path: str | Path, model, adapters: dict, lora: Lora, base: str) -> None:
    """Write adapters as a PEFT directory for `base`, the name or path of the adapted model.

    Raises ConfigError when the family has no module for one of the adapters.
    """
    flat = {name: np.asarray(x, np.float32) for name, x in by_path(adapters).items()}
    adapted = {name.rpartition("/")[0] for name in flat}
    tensors, ranks = {}, {}
    known = modules(model)
    homeless = adapted - {ours for module in known.values() for ours in module.slot.ours}
    if homeless:
        raise ConfigError(
            f"{', '.join(sorted(homeless))}: a Hugging Face {model.config.family} model has no "
            "module of its own for it"
        )
    for name, module in known.items():
        parts = [p for p, ours in enumerate(module.slot.ours) if ours in adapted]
        if not parts:
            continue
        a_of, b_of = zip(*(_layer(flat, module.slot, p) for p in parts), strict=True)
        rank = sum(a.shape[1] for a in a_of)
        b = np.zeros((len(module.outputs), rank), np.float32)
        start = 0
        for p, its_b in zip(parts, b_of, strict=True):
            rows = module.outputs[:, 0] == p
            b[rows, start : start + len(its_b)] = its_b[:, module.outputs[rows, 1]].T
            start += len(its_b)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(
            np.concatenate([a[module.inputs].T for a in a_of])
        )
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b
        ranks[name] = rank
    most = max(ranks.values())
    fewer = {name: rank for name, rank in ranks.items() if rank != most}
    transposed = {known[name].transposed for name in ranks}
    config = {
        "peft_type": "LORA",
        "task_type": TASKS.get(model.config.head),
        "base_model_name_or_path": base,
        "r": most,
        "lora_alpha": lora.scale * most,
        "rank_pattern": fewer,
        "alpha_pattern": {n: lora.scale * r for n, r in fewer.items()},
        "lora_dropout": lora.dropout,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": transposed == {True},
        "bias": "none",
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load(path: str | Path, model) -> tuple[dict, float]:
    """Read the adapters and scale of a PEFT directory, for `merge`.

    Layers that it leaves out get zeros. Raises ConfigError, naming the field, for anything but
    plain LoRA on modules of this model.
    """
    config, tensors = read_config(path), _read(path)
    known = modules(model)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, x in tensors.items():
        stem, _, kind = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if kind not in ("lora_A", "lora_B") or stem not in known:
            raise ConfigError(
                f"{path}: {name} adapts nothing that this {model.config.family} model has as a "
                "linear layer"
            )
        pairs.setdefault(stem, {})[kind] = x.astype(np.float32)
    _check_complete(path, config, known, pairs)
    scale, found = scale_of(config, ""), {}
    for name, pair in pairs.items():
        module, a, b = known[name], pair["lora_A"], pair["lora_B"]
        if (
            a.ndim != 2
            or b.ndim != 2
            or a.shape[0] != b.shape[1]
            or a.shape[0] != rank_of(config, name)
        ):
            raise ConfigError(
                f"{path}: {name} has A {list(a.shape)} and B {list(b.shape)}, "
                f"not of rank {rank_of(config, name)} as {CONFIG} says"
            )
        b = b * (scale_of(config, name) / scale) if scale else b * 0
        if a.shape[1] != len(module.inputs) or b.shape[0] != len(module.outputs):
            raise ConfigError(
                f"{path}: {name} has A {list(a.shape)} and B {list(b.shape)}, "
                "not those of a layer of this model"
            )
        inputs = np.empty_like(a.T)
        inputs[module.inputs] = a.T
        for p, ours in enumerate(module.slot.ours):
            rows = module.outputs[:, 0] == p
            outputs = np.empty((b.shape[1], rows.sum()), np.float32)
            outputs[:, module.outputs[rows, 1]] = b[rows].T
            found.setdefault(ours, {})[module.slot.entry] = (inputs, outputs)
    return _stacked(found, model), scale


def _check_complete(path, config: dict, known, pairs: dict[str, dict]) -> None:
    """Raise ConfigError unless exactly the configured modules have both matrices."""
    half = sorted(name for name, pair in pairs.items() if len(pair) < 2)
    wanted = targeted(config, known)
    absent, extra = (
        (set(), set()) if wanted is None else (wanted - pairs.keys(), pairs.keys() - wanted)
    )
    if half or not pairs:
        raise ConfigError(
            f"{path}: {WEIGHTS} has no pair of lora_A and lora_B for "
            f"{', '.join(half) or 'any module'}; fetch it again"
        )
    if absent:
        raise ConfigError(
            f"{path}: {CONFIG} adapts {', '.join(sorted(absent))}, and {WEIGHTS} has nothing for "
            "it; fetch it again"
        )
    if extra:
        raise ConfigError(
            f"{path}: {WEIGHTS} has {', '.join(sorted(extra))}, which {CONFIG} does not adapt "
            "(target_modules, exclude_modules, layers_to_transform), so that PEFT ignores it: "
            "correct the one or the other"
        )


def is_adapter(path: str | Path) -> bool:
    """Tell whether `path` is a PEFT directory."""
    return (Path(path).expanduser() / CONFIG).is_file()


def _layer(flat: dict, slot: Slot, part: int) -> tuple[np.ndarray, np.ndarray]:
    """A [inputs, rank] and B [rank, outputs] of one part in the layer of `slot`."""
    a, b = (flat[f"{slot.ours[part]}/{side}"] for side in "ab")
    a, b = (x if slot.entry is None else x[slot.entry] for x in (a, b))
    return a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1)


def _read(path: str | Path) -> dict[str, np.ndarray]:
    if (Path(path) / PICKLED).is_file() and not (Path(path) / WEIGHTS).is_file():
        raise ConfigError(f"{path} has {PICKLED} and no {WEIGHTS}: {refused(Path(PICKLED))}")
    try:
        return safetensors.numpy.load_file(Path(path) / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{Path(path) / WEIGHTS} cannot be read: {error}") from error


def _stacked(found: dict[str, dict], model) -> dict:
    """Stack the pairs of each layer; ranks are padded with zeros to the largest of the kernel."""
    shapes, axes, flat = parameter_shapes(model.config), by_path(model.logical_axes()), {}
    for path, layers in found.items():
        m, shape = matrix(path, axes[path]), shapes[path]
        assert m is not None
        rank = max(a.shape[1] for a, _ in layers.values())
        inside, outside = ([shape[d] for d in side] for side in (m.inputs, m.outputs))
        count = [shape[d] for d in m.stacked]
        a, b = (
            np.zeros((*count, *inside, rank), np.float32),
            np.zeros((*count, rank, *outside), np.float32),
        )
        for entry, (its_a, its_b) in layers.items():
            at = ... if entry is None else entry
            a[at][..., : its_a.shape[1]] = its_a.reshape(*inside, -1)
            b[at][: len(its_b)] = its_b.reshape(-1, *outside)
        flat |= {f"{path}/a": jnp.asarray(a), f"{path}/b": jnp.asarray(b)}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def apply(path: str | Path, model, params: dict) -> dict:
    """Merge the adapters of a directory into the params of `model`."""
    return low_rank.merge(params, *load(path, model))
