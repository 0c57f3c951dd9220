"""Named tensors of safetensors directories.

Opening reads the headers only. A tensor is read on request.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Generator
from pathlib import Path

import numpy as np
import safetensors

from lm.families.table import Shape
from lm.weights.errors import WeightsError
from lm.weights.resolve import refused

log = logging.getLogger(__name__)

FLOATS = ("F64", "F32", "F16", "BF16")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """Tensors by name, of the stored dtype (ml_dtypes for bfloat16).

    An array that `read` returned may be overwritten by the next `read`.
    """

    where: str  # for error messages
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    read: Callable[[str], np.ndarray]

    def renamed(self, rename: Callable[[str], str]) -> "Source":
        """Rename the tensors. Raise WeightsError if two of them get the same name."""
        original: dict[str, str] = {}
        for name in self.shapes:
            if original.setdefault(rename(name), name) != name:
                raise WeightsError(
                    f"{self.where}: tensors {original[rename(name)]!r} and {name!r} "
                    "are two versions of the same one"
                )
        return Source(
            self.where,
            {new: self.shapes[old] for new, old in original.items()},
            {new: self.dtypes[old] for new, old in original.items()},
            lambda name: self.read(original[name]),
        )

    def without(self, names: Collection[str]) -> "Source":
        """Omit the named tensors."""
        left = {name: shape for name, shape in self.shapes.items() if name not in names}
        return dataclasses.replace(self, shapes=left)


def read_json(path: Path) -> dict:
    """Read a JSON object. Raise WeightsError naming the file if it is absent or not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path.parent} has no {path.name}: is it a model directory?") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def weight_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """Find the safetensors files of a model directory, and the index's map from tensor to file.

    The map is {} without an index. The order of precedence is that of transformers: the file that
    config.json names in `transformers_weights`, the single file, then the shards of the index.
    Raise WeightsError if there are no such files, or if an index names files that are absent or
    outside the directory.
    """
    config = directory / "config.json"
    named = read_json(config).get("transformers_weights") if config.is_file() else None
    if named is not None:
        if not isinstance(named, str) or not named.endswith(
            (".safetensors", ".safetensors.index.json")
        ):
            raise WeightsError(
                f"{config}: transformers_weights={named!r} is neither a safetensors file "
                "nor an index of such files"
            )
        return (
            indexed(directory, named)
            if named.endswith(".json")
            else (inside(directory, config, [named]), {})
        )
    if (directory / SINGLE).is_file():
        if (directory / INDEX).is_file():
            log.warning(
                "%s has both %s and %s: the first is read, as transformers does",
                directory,
                SINGLE,
                INDEX,
            )
        return [directory / SINGLE], {}
    if (directory / INDEX).is_file():
        return indexed(directory, INDEX)
    raise WeightsError(f"{directory} has no {SINGLE} and no {INDEX}{what_else(directory)}")


def holds_weights(directory: Path) -> bool:
    """Tell whether a directory itself holds a weight file or an index of them."""
    return any((directory / name).is_file() for name in (SINGLE, INDEX))


def indexed(directory: Path, index: str) -> tuple[list[Path], dict[str, str]]:
    """Read an index: the shards it names, and its map from tensor to shard."""
    [path] = inside(directory, directory / "config.json", [index])
    shards = read_json(path).get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(name, str) for name in shards.values())
    ):
        raise WeightsError(f"{path} has no weight_map from tensor names to file names")
    return inside(directory, path, sorted(set(shards.values()))), shards


def inside(directory: Path, source: Path, names: list[str]) -> list[Path]:
    """Paths of the named files in a directory. source: the file that names them.

    Raise WeightsError if a file is absent, outside the directory or pickled.
    """
    root = os.path.abspath(directory)
    strange = [
        name
        for name in names
        if not os.path.abspath(os.path.join(root, name)).startswith(os.path.join(root, ""))
    ]
    if strange:
        raise WeightsError(f"{source} points outside its directory: {', '.join(strange)}")
    pickled = [reason for name in names if (reason := refused(Path(name)))]
    if pickled:
        raise WeightsError(f"{source} names {', '.join(names)}: {pickled[0]}")
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise WeightsError(
            f"{directory} lacks {len(absent)} of the {len(names)} files that {source.name} names: "
            f"{', '.join(absent)}; fetch or export the model again"
        )
    return [directory / name for name in names]


def what_else(directory: Path) -> str:
    """Say what a directory without weights has instead, and what to do about it."""
    names = sorted(path.name for path in directory.iterdir())
    ours = [name for name in names if name.endswith(".safetensors")]
    shards, variants = (
        [name for name in ours if re.fullmatch(pattern, name)]
        for pattern in (r"model-\d+-of-\d+.*", r"model\.[^.]+\.safetensors")
    )
    if shards:
        return f" for its {len(shards)} shards ({shards[0]}, ...): fetch the index too"
    if variants:
        return f", only a variant: rename or link {variants[0]} to {SINGLE} to read it"
    if "adapter_config.json" in names:
        return ": it is an adapter, which lm.load reads together with its base"
    for name in names:
        if name.endswith(".gguf"):
            return f", but {name}: give the path of that file"
        reason = refused(Path(name.removesuffix(".index.json")))
        if reason and name.startswith(("pytorch_model", "model", "consolidated")):
            return f", but {name}: {reason}"
    return f" (it has {', '.join(names) or 'nothing'})"


@contextlib.contextmanager
def open_safetensors(directory: Path) -> Generator[Source]:
    """Open the tensors of a model directory. Each file is opened and its header checked once."""
    with contextlib.ExitStack() as stack:
        home, shapes, dtypes = {}, {}, {}
        files, index = weight_files(directory)
        for path in files:
            try:
                handle = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (safetensors.SafetensorError, OSError) as error:
                raise WeightsError(
                    f"{path} is not a complete safetensors file ({error}); fetch or export it again"
                ) from error
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                if name in home:
                    raise WeightsError(
                        f"{directory}: tensor {name!r} is in two files, one of them {path.name}"
                    )
                entry = handle.get_slice(name)
                home[name], shapes[name], dtypes[name] = (
                    handle,
                    tuple(entry.get_shape()),
                    str(entry.get_dtype()),
                )
        gone = sorted(name for name in index if name not in home)
        if gone:
            listed = ", ".join(f"{name} ({index[name]})" for name in gone[:5])
            raise WeightsError(
                f"{directory} lacks {len(gone)} of the {len(index)} tensors "
                f"that its index names: {listed}"
            )
        yield Source(str(directory), shapes, dtypes, lambda name: home[name].get_tensor(name))
