"""Files of the model in a run folder: model/config.json, model/template.json, model/tokenizer/.

model/auxiliary.json has the configs of the models beside it, whose weights are in the checkpoints.
"""

import dataclasses
import json
import pathlib
import tempfile
import types
from collections.abc import Mapping

from lm.data import templates
from lm.data.templates import Template
from lm.models.config import ModelConfig
from lm.weights.runs import digests
from lm.weights.runs.paths import Folder, is_remote, resolve, upload, write_atomically
from lm.weights.runs.steps import CheckpointError

AUXILIARY = "auxiliary.json"
MODELS = "models"  # entry of a state's params with those of trained auxiliary models


@dataclasses.dataclass(frozen=True)
class Kept:
    """An auxiliary model of a run.

    model, start, trained, tied, own_rows: as the task declared them (lm.tasks.models.Aux), "" for a
    config.
    """

    model: str
    start: str
    config: ModelConfig
    trained: bool = False
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own_rows: bool = False


def check_model(workdir: str | Folder, config: ModelConfig) -> None:
    """Raise CheckpointError, with a diff, when the run folder has another model."""
    path = model_folder(workdir) / "config.json"
    if not path.exists():
        return
    there, wanted = read_object(path), _plain(config)
    changed = [
        f"  model.{name}: {there.get(name)!r} in the run, {wanted.get(name)!r} now"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name) and name not in _COMPUTE
    ]
    if changed:
        raise CheckpointError(
            f"{workdir} holds a run of another model:\n"
            + "\n".join(changed)
            + "\nuse the old values, or another --workdir"
        )


def save_model(
    workdir: str | Folder,
    config: ModelConfig,
    tokenizer,
    template: Template | None = None,
    beside: Mapping[str, Kept] = types.MappingProxyType({}),
) -> None:
    """Write the model's config, the tokenizer and the template of its training records.

    beside: auxiliary models by name.
    """
    folder = model_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if beside:
        kept = {name: _plain(one) for name, one in beside.items()}
        write_atomically(folder / AUXILIARY, json.dumps(kept, indent=1))
    if template is not None:
        write_atomically(
            folder / "template.json", json.dumps(templates.remember(template), indent=1)
        )
    if tokenizer is not None and is_remote(folder):
        with tempfile.TemporaryDirectory() as temporary:
            tokenizer.save_pretrained(temporary)
            upload(pathlib.Path(temporary), folder / "tokenizer")
    elif tokenizer is not None:
        tokenizer.save_pretrained(str(folder / "tokenizer"))
    write_atomically(folder / "config.json", json.dumps(_plain(config), indent=1))
    there = [
        at
        for at in (
            *folder.iterdir(),
            *(folder / "tokenizer").glob("*"),
            folder.parent / "config.json",
        )
        if at.is_file()
    ]
    digests.write(
        folder.parent,
        files=[at.as_posix().removeprefix(f"{folder.parent.as_posix()}/") for at in there],
    )


def check_template(workdir: str | Folder, template: Template | None) -> None:
    """Raise CheckpointError when the run folder has another template."""
    there, now = kept_template(workdir), None if template is None else templates.remember(template)
    if there is not None and (
        now is None or any(there.get(name) != now[name] for name in ("name", "stop", "fingerprint"))
    ):
        raise CheckpointError(
            f"{workdir} holds a run with another template: {_described(there)} in the run, "
            f"{_described(now)} now; use the old one, or "
            "another --workdir"
        )


def kept_template(workdir: str | Folder) -> dict | None:
    """Description of the run's template (lm.data.templates.remember); None without one."""
    path = model_folder(workdir) / "template.json"
    return read_object(path) if path.exists() else None


def kept_auxiliary(workdir: str | Folder) -> dict[str, Kept]:
    """Auxiliary models of the run by name; {} if it has none or is of an earlier version."""
    path = model_folder(workdir) / AUXILIARY
    if not path.exists():
        return {}
    try:
        return {
            name: Kept(**one | {"config": _config(one["config"])})
            for name, one in read_object(path).items()
        }
    except (TypeError, KeyError) as e:
        raise CheckpointError(
            f"{path} does not describe models of this version ({e}); put back a good copy, or "
            "delete it to have the models read from where the task names them"
        ) from e


def _config(fields: dict) -> ModelConfig:
    return ModelConfig(**{name: _tuples(value) for name, value in fields.items()})


def _described(kept: dict | None) -> str:
    return "none" if kept is None else f"{kept['name']} {kept['options']} ({kept['fingerprint']})"


def load_model_config(workdir: str | Folder) -> ModelConfig:
    """ModelConfig of a run folder. Raises CheckpointError when it is not a run folder."""
    path = model_folder(workdir) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{workdir} is not a run folder: it has no model/config.json")
    if differing := digests.problems(path.parent.parent):
        raise CheckpointError(
            f"{workdir}: {'; '.join(differing)}. Put back a good copy, or start its training "
            "command again, which writes these files anew; "
            f"if you changed them on purpose, delete {path.parent.parent / 'digests-0-of-1'}"
        )
    try:
        return _config(read_object(path))
    except TypeError as e:
        raise CheckpointError(
            f"{path} does not describe a model of this version ({e}); put back a good copy"
        ) from e


def read_object(path: Folder) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as e:
        raise CheckpointError(
            f"{path} is damaged: it is not JSON ({e}); put back a good copy, or delete it to "
            "have it written anew"
        ) from e
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} is damaged: it holds no object; put back a good copy, or delete it to have "
            "it written anew"
        )
    return found


def _tuples(value):
    """Convert JSON's lists to the tuples of ModelConfig."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(config: ModelConfig | Kept) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))


_COMPUTE = ("dtype", "attention_backend", "remat", "dropout")  # may change when a run is resumed


def model_folder(workdir) -> Folder:
    return resolve(workdir) / "model"
