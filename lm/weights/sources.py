"""Named tensors in files: safetensors directories. Opening reads headers only; a tensor is read when asked for."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Generator
from pathlib import Path

import numpy as np
import safetensors

from lm.families.table import Shape
from lm.weights.errors import WeightsError
from lm.weights.resolve import refused

FLOATS = ("F64", "F32", "F16", "BF16")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """Tensors by name. `read` returns the stored dtype (bfloat16 as ml_dtypes) in a fresh array."""

    where: str  # for messages
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    read: Callable[[str], np.ndarray]

    def renamed(self, rename: Callable[[str], str]) -> "Source":
        """The same tensors under other names; WeightsError if two names fall together."""
        original: dict[str, str] = {}
        for name in self.shapes:
            if original.setdefault(rename(name), name) != name:
                raise WeightsError(f"{self.where}: tensors {original[rename(name)]!r} and {name!r} are two versions of the same one")
        return Source(
            self.where,
            {new: self.shapes[old] for new, old in original.items()},
            {new: self.dtypes[old] for new, old in original.items()},
            lambda name: self.read(original[name]),
        )

    def without(self, names: Collection[str]) -> "Source":
        """The same tensors but for some."""
        left = {name: shape for name, shape in self.shapes.items() if name not in names}
        return dataclasses.replace(self, shapes=left)


def read_json(path: Path) -> dict:
    """A JSON object; WeightsError naming the file when it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path.parent} has no {path.name}: is it a model directory?") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory: the index's shards, or the one file."""
    if (directory / INDEX).is_file():
        shards = read_json(directory / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise WeightsError(f"{directory / INDEX} has no weight_map from tensor names to file names")
        names = sorted(set(shards.values()))
        strange = [name for name in names if Path(name).name != name]
        if strange:
            raise WeightsError(f"{directory / INDEX} points outside its directory: {', '.join(strange)}")
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise WeightsError(f"{directory} lacks {len(absent)} of the {len(names)} files its index names: {', '.join(absent)}")
        return [directory / name for name in names]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    for path in sorted(directory.iterdir()):
        if refused(path) and path.name.startswith(("pytorch_model", "model", "consolidated")):
            raise WeightsError(f"{directory} has {path.name} and no {SINGLE}: {refused(path)}")
    raise WeightsError(f"{directory} has no weights: expected {SINGLE}, or {INDEX} with the files it names")


@contextlib.contextmanager
def open_safetensors(directory: Path) -> Generator[Source]:
    """The tensors of a model directory; every file is opened, and its header checked, once."""
    with contextlib.ExitStack() as stack:
        home, shapes, dtypes = {}, {}, {}
        for path in weight_files(directory):
            try:
                handle = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (safetensors.SafetensorError, OSError) as error:
                raise WeightsError(f"{path} is not a complete safetensors file ({error}); fetch or export it again") from error
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                if name in home:
                    raise WeightsError(f"{directory}: tensor {name!r} is in two files, one of them {path.name}")
                entry = handle.get_slice(name)
                home[name], shapes[name], dtypes[name] = handle, tuple(entry.get_shape()), str(entry.get_dtype())
        yield Source(str(directory), shapes, dtypes, lambda name: home[name].get_tensor(name))
