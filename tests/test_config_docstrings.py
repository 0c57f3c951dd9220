"""Docstrings of configs: existing commands, parameter counts, and losses of the :tiny variant."""

import importlib
import inspect
import math
import re
from pathlib import Path

import jax
import pytest

from configs.defaults import defaults
from lm.batch import Batch
from lm.data import tokenizers
from lm.models import build
from lm.tasks import TASKS
from lm.training import loop, settings, trackers

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "defaults")
)
SIZE = r"([\d.]+) (?:M|million) parameters"
LOSS = r"[Ll]oss(?: there)? from ([\d.]+) to about (\d+(?:\.\d+)?)"
TINY = (
    "pretrain_gpt2",
    "tiny",
    "pretrain_mamba",
    "alpaca_llama",
    "mlm_bert",
    "span_corruption_t5",
    "denoise_bart",
    "continual_domain",
    "superni_t5_small",
    "classify",
    "glue_bert",
    "translate_transformer",
)
QUICK = ("pretrain_gpt2",)  # the cheapest: 20 updates


def config_of(name):
    module = importlib.import_module(f"configs.{name}")
    variant = "base" if name == "lora" else "tiny" if "tiny=" in inspect.getsource(module) else ""
    return inspect.getdoc(module) or "", module.get_config(*[variant] if variant else [])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_docstring_names_a_command_or_a_field_that_is_not_there(name):
    said, config = config_of(name)
    for module in re.findall(r"python -m ([\w.]*\w)", said):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    for file in re.findall(r"configs/\w+(?:/\w+)*\.\w+", said):
        assert (ROOT / file).is_file(), file
    known, fields = {*settings_of(defaults())}, {*settings_of(config)}
    for field in re.findall(r"--config\.([\w.]*\w)", said):
        assert field in known | fields or field.startswith("eval.data."), field


def settings_of(config, prefix=""):
    for name in config:
        value = config[name]
        yield prefix + name
        if hasattr(value, "keys"):
            yield from settings_of(value, f"{prefix}{name}.")


@pytest.mark.parametrize(
    "name", [name for name in (*TINY, "qa_single_task", "lora", "quickstart_pretrain", "electra")]
)
def test_a_docstring_has_another_number_of_parameters_than_the_model(name):
    said, config = config_of(name)
    stated = re.search(
        SIZE, said.split(":tiny")[-1] if ":base" not in said else said.split(":base")[-1]
    )
    if name == "quickstart_pretrain":
        config.model.vocab_size = 2048
    tokenizer = (
        None
        if name == "quickstart_pretrain"
        else tokenizers.bytes_only(**TASKS[config.task.name].special)
    )
    model = settings.model_config(config.model, tokenizer)
    shapes = jax.eval_shape(
        lambda: build(model).init(jax.random.key(0), Batch.of([[0, 0]]))["params"]
    )
    counted = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) / 1e6
    digits = len(stated[1].partition(".")[2])
    assert round(counted, digits) == float(stated[1]), f"{counted:.3f} M"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in TINY]
)
def test_a_tiny_run_has_another_loss_than_its_docstring_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    said, config = config_of(name)
    first, last = map(float, re.search(LOSS, said).groups())
    config.update_from_flattened_dict(
        {
            "data.cache": str(tmp_path / "cache"),
            "log.tensorboard": False,
            "samples.prompts": (),
            "log.every": 1000,
        }
    )
    assert loop.train(config, tmp_path / "run") == 0
    losses = [row["loss"] for row in trackers.read(tmp_path / "run") if "loss" in row]
    if name == "superni_t5_small":  # its docstring states the loss of the held-out task
        losses = [
            first,
            [row for row in trackers.read(tmp_path / "run") if "eval/test/loss" in row][-1][
                "eval/test/loss"
            ],
        ]
    assert losses[0] == pytest.approx(first, abs=0.2) and losses[-1] == pytest.approx(
        last, abs=0.3
    ), losses


def test_the_two_models_of_a_comparison_differ_in_size_or_in_more_than_the_model():
    from configs import tiny

    configs = [tiny.get_config(name) for name in ("gpt2", "mamba")]
    sizes = []
    for config in configs:
        model = settings.model_config(config.model, tokenizers.bytes_only())
        sizes.append(
            sum(
                math.prod(x.shape)
                for x in jax.tree.leaves(
                    jax.eval_shape(
                        lambda m=model: build(m).init(jax.random.key(0), Batch.of([[0, 0]]))[
                            "params"
                        ]
                    )
                )
            )
        )
        config.model = None
    assert abs(sizes[0] / sizes[1] - 1) < 0.02 and configs[0].to_json() == configs[1].to_json(), (
        sizes
    )
