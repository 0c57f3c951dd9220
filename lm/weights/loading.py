"""Load a model from a run folder, directory, hub id, GGUF file or PEFT adapter."""

import json
import pathlib

from lm.phases import phase
from lm.xla_flags import avoid_wrong_fusion

TEMPLATE = "template.json"  # template of a run or exported model, from lm.data.templates.remember
GENERATION = "generation_config.json"


def load(path_or_id: str, dtype: str | None = None, quantize: str | None = None):
    """(model, params, tokenizer); params are a plain nested dict, with adapters merged.

    path_or_id: training run (its newest checkpoint), Hugging Face directory or hub id, .gguf file,
    or PEFT adapter, whose base is loaded too.
    dtype: "float32", "bfloat16" or "float16", of parameters and computation; default: float32, or
    the run's own.
    quantize: "int8" rounds the matrices to int8 (lm.models.quantised), for reading only; `dtype` is
    then that of activations and the rest, by default bfloat16.
    Raises lm.WeightsError, lm.ConfigError or CheckpointError (all ValueErrors), naming the file.
    """
    dtype = dtype or (quantize and "bfloat16")
    if is_run(path_or_id):
        from lm.weights.runs.model_files import load_model_config
        from lm.weights.runs.weights import load_params

        avoid_wrong_fusion(dtype or load_model_config(path_or_id).dtype)
        with phase(f"loading the weights of {path_or_id}"):
            model, params, tokenizer = load_params(path_or_id)
        model, params = _cast(model, params, dtype)
    else:
        model, params = load_weights(path_or_id, dtype)
        tokenizer = load_tokenizer(path_or_id, model.config)
    if quantize == "int8":
        from lm.models.quantised import quantise

        with phase("rounding the weights to int8"):
            params = quantise(model, params)
    return model, params, tokenizer


def model_config(path_or_id: str):
    """ModelConfig of what `load` reads, without its weights; raises as `load` does."""
    from lm import families
    from lm.weights import peft, resolve
    from lm.weights.gguf import open_gguf
    from lm.weights.load import asked_config

    if is_run(path_or_id):
        from lm.weights.runs.model_files import load_model_config

        return load_model_config(path_or_id)
    folder = resolve(path_or_id, weights=False)
    if folder.is_file():
        with open_gguf(folder) as (hf, _):
            return families.config_from_hf(hf)
    if peft.is_adapter(folder):
        return model_config(base_of(folder))
    return asked_config(folder, None)[1]


def load_weights(path_or_id: str, dtype: str | None = None):
    """(model, params) of a directory, hub id, .gguf file or PEFT adapter, but not a run."""
    from lm.weights import WeightsError, from_hf, peft, resolve

    folder = resolve(path_or_id, weights=False)
    if not peft.is_adapter(folder):
        avoid_wrong_fusion(dtype or "float32")
        return from_hf(path_or_id, dtype=dtype)
    base = base_of(folder)
    try:
        model, params, _ = load(base, dtype)
    except WeightsError as error:
        raise WeightsError(
            f"the base of {path_or_id}, base_model_name_or_path in its {peft.CONFIG}: {error}"
        ) from error
    return model, peft.apply(resolve(path_or_id), model, params)


def load_tokenizer(path_or_id: str, config):
    """Tokenizer of a model that is not a run.

    An adapter's own tokenizer or chat template replaces that of its base.
    """
    from lm.weights import WeightsError, peft, resolve
    from lm.weights import tokenizer as tokenizers

    folder = resolve(path_or_id, weights=False)
    if not peft.is_adapter(folder) or tokenizers.files(folder):
        tokenizer = tokenizers.load_tokenizer(folder)
        if peft.is_adapter(folder) and len(tokenizer) > config.vocab_size:
            raise WeightsError(
                f"the tokenizer of {path_or_id} has {len(tokenizer)} tokens, and its base's "
                f"vocabulary {config.vocab_size}"
            )
        return tokenizer
    base, template = base_of(folder), folder / "chat_template.jinja"
    tokenizer = load(base)[2] if is_run(base) else load_tokenizer(base, config)
    if template.is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def base_of(folder: pathlib.Path) -> str:
    """Base that an adapter names. Raises ConfigError when it names none."""
    from lm.models.config import ConfigError
    from lm.weights import peft

    base = peft.read_config(folder).get("base_model_name_or_path")
    if (
        not base
        or not isinstance(base, str)
        or pathlib.Path(base).expanduser().resolve() == folder.resolve()
    ):
        raise ConfigError(
            f"{folder / peft.CONFIG}: base_model_name_or_path={base!r} names no base: write "
            "there the directory, run folder or hub id of "
            "the model that the adapter was trained on"
        )
    return base


def is_run(path: str) -> bool:
    """Whether `path` is a training run, not a model's directory with a folder `checkpoints`."""
    from lm.weights.runs.paths import resolve

    folder = resolve(path)
    return (folder / "checkpoints").is_dir() and (
        (folder / "model").is_dir() or not (folder / "model.safetensors").exists()
    )


def run_config(path: str) -> dict:
    """Content of a training run's config.json; {} for anything else."""
    from lm.weights.runs.old_runs import upgrade
    from lm.weights.runs.paths import resolve

    file = resolve(path) / "config.json"
    return upgrade(json.loads(file.read_text())) if is_run(path) and file.exists() else {}


def kept(path_or_id: str, name: str) -> dict | None:
    """JSON object in the file `name` beside a model's weights, or None.

    For an adapter without the file, that of its base. Raises ConfigError for invalid JSON.
    """
    from lm.models.config import ConfigError
    from lm.weights import peft
    from lm.weights.resolve import resolve
    from lm.weights.runs import paths

    if is_run(path_or_id):
        file = paths.resolve(path_or_id) / "model" / name
    else:
        folder = resolve(path_or_id, weights=False)
        file = folder / name
        spelled_otherwise = name == TEMPLATE and (folder / "chat_template.jinja").is_file()
        if not file.is_file() and peft.is_adapter(folder) and not spelled_otherwise:
            return kept(base_of(folder), name)
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(
            f"{file} belongs to the model, and is not JSON ({error}): export again, or delete it"
        ) from None
    return found if isinstance(found, dict) else None


def keep_generation(workdir, init_from: str) -> None:
    """Copy generation_config.json of a run's base, if there is one, to the run's folder."""
    from lm.weights.runs import paths

    settings = kept(init_from, GENERATION) if init_from else None
    if settings is not None:
        paths.write_atomically(
            paths.resolve(workdir) / "model" / GENERATION, json.dumps(settings, indent=1)
        )


def kept_template(path_or_id: str) -> dict | None:
    """Description of the template of a run or exported model (lm.data.templates.remember), or None.

    A file of that name with other fields is ignored. Raises ConfigError for invalid JSON.
    """
    found = kept(path_or_id, TEMPLATE)
    fields = {"name": str, "options": dict, "fingerprint": str}
    return (
        found
        if found is not None
        and all(isinstance(found.get(name), kind) for name, kind in fields.items())
        else None
    )


def load_template(path_or_id: str, tokenizer):
    """Template that a run, or a model exported from one, was trained with, or None.

    Raises ConfigError when the template now renders differently, so that prompts would differ from
    training.
    """
    from lm.data import templates

    found = kept_template(path_or_id)
    return None if found is None else templates.recall(found, tokenizer)


def save_template(directory: str | pathlib.Path, kept: dict | None) -> None:
    """Write a template's description to a model's directory; None removes the file there."""
    file = pathlib.Path(directory).expanduser() / TEMPLATE
    if kept is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _cast(model, params, dtype: str | None):
    if dtype is None:
        return model, params
    import jax

    from lm.models import build

    return build(model.config.replace(dtype=dtype, param_dtype=dtype)), jax.tree.map(
        lambda x: x.astype(dtype), params
    )
