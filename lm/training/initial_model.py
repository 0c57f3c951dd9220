"""Model, tokenizer and template that a run starts from."""

from lm.data import tokenizers
from lm.loading import load_template
from lm.models import build
from lm.models.config import ConfigError
from lm.objectives import OBJECTIVES
from lm.training import instruction, labelling, mixing, model_files, settings
from lm.training.documents import as_trained
from lm.training.paths import Folder

COMPUTE = (
    "dtype",
    "param_dtype",
    "remat",
    "layers",
    "dropout",
)  # fields of config.model that apply with init_from


def initial_model(config: settings.Config, workdir: Folder, resuming: bool):
    """(model, params or None, tokenizer or None, template or None).

    params are None when they will be restored from a checkpoint, or drawn from the seed.
    """
    model, params, tokenizer = _loaded(config, resuming)
    if config.objective.name in labelling.OBJECTIVES:
        if tokenizer is None:
            raise ConfigError(
                "labelled texts need a tokenizer, and neither the config nor init_from has one"
            )
        model, params = labelling.with_labels(
            config, list(mixing.parts(config).values()) or [config], model, params
        )
    tokenizer = as_trained(tokenizer, config.objective.name)
    there = model_files.kept_template(workdir)
    template = instruction.template_of(
        config,
        tokenizer,
        load_template(config.init_from, tokenizer) if config.init_from else None,
        there,
    )
    return (
        build(instruction.with_stop(model.config, template, tokenizer)),
        params,
        tokenizer,
        template,
    )


def _loaded(config: settings.Config, resuming: bool):
    from lm.loading import load
    from lm.tokenizer import load_tokenizer

    tokenizer = None
    if config.tokenizer:
        every = [config, *mixing.parts(config).values()]
        special = {
            name: value
            for one in every
            for name, value in OBJECTIVES[one.objective.name].special.items()
        }
        tokenizer = (
            tokenizers.bytes_only(**special)
            if config.tokenizer == "bytes"
            else load_tokenizer(config.tokenizer)
        )
        tokenizer = (
            instruction.with_control(tokenizer, config.data.template)
            if config.tokenizer == "bytes"
            else tokenizer
        )
    if not config.init_from:
        return build(settings.model_config(config.model, tokenizer)), None, tokenizer
    model, params, its_tokenizer = load(config.init_from)
    changes = {name: config.model[name] for name in COMPUTE}
    model = build(model.config.replace(**changes))
    return model, None if resuming else params, tokenizer or its_tokenizer
