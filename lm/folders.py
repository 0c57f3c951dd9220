"""What a folder holds, told by its files before something else is written there."""

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
FISHER = "fisher.safetensors"  # weights of no model


def kind(folder: Any) -> str:
    """"a run", "a model", "an adapter", "a tokenizer", "other files" with names that a run gives its own, "a file", or "".

    folder: a path, also of object storage.
    """  # fmt: skip
    if not folder.is_dir():
        return "a file" if folder.exists() else ""
    names = {path.name for path in folder.iterdir()} - {FISHER}
    config = _object(folder / "config.json") if "config.json" in names else {}
    its_own = (
        "run.json" in names
        or {"environment.json", "status.json"} <= names
        or {"optimizer", "objective"} <= config.keys()
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
    """What a run was started from, or an adapter is of, where `path` is one of these."""
    folder = pathlib.Path(path).expanduser()
    return _object(folder / "config.json").get("init_from") or _object(
        folder / "adapter_config.json"
    ).get("base_model_name_or_path")


def refuse(
    option: str, path: Any, allowed: Collection[str] = (), read: Iterable[str | None] = ()
) -> None:
    """Raises ConfigError when the folder that `option` names holds what would be written over, or would no longer be what it is.

    allowed: of the words of `kind`, those that may be there.   read: paths of what is read, none of which it may be.
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
            f"--{option}={path} holds {found}{there}: give another folder, in which nothing can be written over"
        )


def _object(file: Any) -> dict:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}
