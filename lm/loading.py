"""One way for every entry point to get a model: from a run folder, a directory, a hub id, a GGUF file, or a PEFT adapter's directory."""

import json
import pathlib

from lm.xla_flags import avoid_wrong_fusion

TEMPLATE = "template.json"  # in the directory of an exported model: what lm.data.templates.remember keeps


def is_run(path: str) -> bool:
    """Whether `path` is the work directory of a training run, and not a model's directory that has a folder `checkpoints`."""
    from lm.training.paths import resolve

    folder = resolve(path)
    return (folder / "checkpoints").is_dir() and ((folder / "model").is_dir() or not (folder / "model.safetensors").exists())


def run_config(path: str) -> dict:
    """The config.json of a training run, or {} for anything else."""
    from lm.training.paths import resolve

    file = resolve(path) / "config.json"
    return json.loads(file.read_text()) if is_run(path) and file.exists() else {}


def kept_template(path_or_id: str) -> dict | None:
    """What lm.data.templates.remember kept of the template of a run, or of a model exported from one; None where there is none.

    Another program's file of that name is none. Raises ConfigError for one that is no JSON.
    """
    from lm.models.config import ConfigError
    from lm.training import paths
    from lm.weights.resolve import resolve

    file = (paths.resolve(path_or_id) / "model" if is_run(path_or_id) else resolve(path_or_id, weights=False)) / TEMPLATE
    if not file.is_file():
        return None
    try:
        kept = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file} is to hold the template of the model, and is not JSON ({error}): export again, or delete it") from None
    fields = {"name": str, "options": dict, "fingerprint": str}
    return kept if isinstance(kept, dict) and all(isinstance(kept.get(name), kind) for name, kind in fields.items()) else None


def load_template(path_or_id: str, tokenizer):
    """The lm.data.templates.Template that a run, or a model exported from one, was trained with; None where there is none.

    Raises ConfigError when this tokenizer or code spells differently: what generation sends would not be what was learned.
    """
    from lm.data import templates

    kept = kept_template(path_or_id)
    return None if kept is None else templates.recall(kept, tokenizer)


def save_template(directory: str | pathlib.Path, kept: dict | None) -> None:
    """Puts what `kept_template` gives into the directory of a model; None: removes what is there."""
    file = pathlib.Path(directory).expanduser() / TEMPLATE
    if kept is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def load(path_or_id: str, dtype: str | None = None):
    """(model, params, tokenizer) from whatever `path_or_id` names.

    Raises lm.WeightsError (a ValueError) or the checkpoint's own error, naming the file, when it cannot be read.
    """
    if is_run(path_or_id):
        from lm.training.checkpoints import load_model_config, load_params

        avoid_wrong_fusion(load_model_config(path_or_id).dtype)
        return load_params(path_or_id)
    from lm.adaptation import peft
    from lm.tokenizer import load_tokenizer
    from lm.weights import from_hf

    if peft.is_adapter(path_or_id):
        model, params, tokenizer = load(peft.read_config(path_or_id)["base_model_name_or_path"], dtype)
        return model, peft.apply(path_or_id, model, params), tokenizer
    avoid_wrong_fusion(dtype or "float32")
    model, params = from_hf(path_or_id, dtype=dtype)
    return model, params, load_tokenizer(path_or_id)
