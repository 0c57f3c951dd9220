"""One way for every entry point to get a model: from a run folder, a directory, a hub id, a GGUF file, or a PEFT adapter's directory."""


def is_run(path: str) -> bool:
    """Whether `path` is the work directory of a training run."""
    from lm.training.paths import resolve

    return (resolve(path) / "checkpoints").is_dir()


def load_template(path_or_id: str, tokenizer):
    """The lm.data.templates.Template that a run was trained with; None for what is no run folder, or had none. Raises ConfigError."""
    if not is_run(path_or_id):
        return None
    from lm.training import checkpoints

    return checkpoints.load_template(path_or_id, tokenizer)


def load(path_or_id: str, dtype: str | None = None):
    """(model, params, tokenizer) from whatever `path_or_id` names.

    Raises lm.WeightsError (a ValueError) or the checkpoint's own error, naming the file, when it cannot be read.
    """
    if is_run(path_or_id):
        from lm.training.checkpoints import load_params

        return load_params(path_or_id)
    from lm.adaptation import peft
    from lm.tokenizer import load_tokenizer
    from lm.weights import from_hf

    if peft.is_adapter(path_or_id):
        model, params, tokenizer = load(peft.read_config(path_or_id)["base_model_name_or_path"], dtype)
        return model, peft.apply(path_or_id, model, params), tokenizer
    model, params = from_hf(path_or_id, dtype=dtype)
    return model, params, load_tokenizer(path_or_id)
