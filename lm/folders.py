"""Detect what a folder contains, before something else is written to it."""

import fnmatch
import json
import pathlib
from collections.abc import Collection, Iterable
from typing import Any

from lm.models.config import ConfigError

RUN = {"config.json", "environment.json", "status.json", "run.json", "metrics.jsonl", "samples.md"}
RUN |= {"model", "checkpoints", "plots", "tensorboard"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"}
WEIGHTS = (
    "*.safetensors",
    "*.index.json",
    "*.gguf",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.msgpack",
    "*.h5",
)
TOKENIZER = {
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
}
FISHER = "fisher.safetensors"  # does not make a folder a model


def kind(folder: Any) -> str:
    """Kind of a folder, judged by its files.

    One of: "a run", "a model", "an adapter", "a tokenizer", "other files" (some named as a run's),
    "a file", or "".
    folder: a local path or one in object storage.
    """
    if not folder.is_dir():
        return "a file" if folder.exists() else ""
    names = {path.name for path in folder.iterdir()} - {FISHER}
    config = _object(folder / "config.json") if "config.json" in names else {}
    its_own = (
        "run.json" in names
        or {"environment.json", "status.json"} <= names
        or {"optimizer", "data"} <= config.keys()
    )
    if its_own or ("checkpoints" in names and (folder / "model" / "config.json").exists()):
        return "a run"
    weights = {name for pattern in WEIGHTS for name in fnmatch.filter(names, pattern)} - ADAPTER
    if weights or {"model_type", "architectures"} & config.keys():
        return "a model"
    if names & ADAPTER:
        return "an adapter"
    return "other files" if names & RUN else "a tokenizer" if names & TOKENIZER else ""


def base_of(path: str) -> str | None:
    """Base of a run or an adapter at `path`; None for anything else."""
    folder = pathlib.Path(path).expanduser()
    return _object(folder / "config.json").get("init_from") or _object(
        folder / "adapter_config.json"
    ).get("base_model_name_or_path")


def refuse(
    option: str, path: Any, allowed: Collection[str] = (), read: Iterable[str | None] = ()
) -> None:
    """Raise ConfigError when writing to `path` would overwrite or spoil what it contains.

    option: name of the command-line option, for the message. allowed: kinds (see `kind`) that may
    be there. read: input paths, which `path` must not be.
    """
    folder = pathlib.Path(path).expanduser() if isinstance(path, str) else path
    for other in filter(None, read):
        if pathlib.Path(other).expanduser().resolve() == folder.resolve():
            raise ConfigError(f"--{option}={path} is read too, as {other}: give another folder")
    if (found := kind(folder)) and found not in allowed:
        there = (
            f" ({', '.join(sorted(entry.name for entry in folder.iterdir())[:5])})"
            if folder.is_dir()
            else ""
        )
        raise ConfigError(
            f"--{option}={path} holds {found}{there}: give another folder, in which nothing can "
            "be written over"
        )


def _object(file: Any) -> dict:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}
