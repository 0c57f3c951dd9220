"""Model, tokenizer and template that a run starts from."""

from lm.data import tokenizers
from lm.models import build
from lm.models.model import laid_out
from lm.tasks import Kept, Start
from lm.training import settings
from lm.training.parts import Parts
from lm.weights.loading import load_template
from lm.weights.runs import model_files
from lm.weights.runs.paths import Folder

COMPUTE = (
    "dtype",
    "param_dtype",
    "attention_backend",
    "remat",
    "layers",
    "dropout",
)  # fields of config.model that apply with init_from


def initial_model(parts: Parts, workdir: Folder, resuming: bool):
    """(model, params or None, tokenizer or None, template or None).

    params are None when they will be restored from a checkpoint, or drawn from the seed.
    """
    config, task = parts.main.config, parts.main.task
    model, params, tokenizer = _loaded(parts, resuming)
    sources = [part.config for part in parts.sources.values()] or [config]
    base = None
    if task.renders and config.init_from:
        base = load_template(config.init_from, tokenizer)
    kept = Kept(base, model_files.kept_template(workdir))
    start = task.prepare(Start(model, params, tokenizer), config, sources, kept)
    return start.model, start.params, start.tokenizer, start.template


def _loaded(parts: Parts, resuming: bool):
    from lm.weights.loading import load
    from lm.weights.tokenizer import load_tokenizer

    tokenizer, config = None, parts.main.config
    if config.tokenizer:
        every = [parts.main, *parts.read]
        special = {name: value for one in every for name, value in one.task.special.items()}
        tokenizer = (
            parts.main.task.prepare_tokenizer(tokenizers.bytes_only(**special))
            if config.tokenizer == "bytes"
            else load_tokenizer(config.tokenizer)
        )
    if not config.init_from:
        return build(settings.model_config(config.model, tokenizer)), None, tokenizer
    model, params, its_tokenizer = load(config.init_from)
    changes = {name: config.model[name] for name in COMPUTE}
    model = build(model.config.replace(**changes))
    params = None if resuming else laid_out(model.config, params)
    return model, params, tokenizer or its_tokenizer
