"""Smoke run on any text: a byte-level Llama of 0.13 M parameters, seconds on a laptop CPU.

python -m lm.train --config=configs/tiny.py --workdir=runs/tiny \
    --config.data.files='README.md,docs/*.md'
Expected: loss from 5.8 to about 2.9 on those files, less on a shorter text.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset


def get_config(variant=""):
    c = defaults()
    c.steps = 200  # updates
    c.batch_size = 16  # rows per update
    c.length = 64  # tokens per row
    c.tokenizer = "bytes"  # one token per byte
    c.data.files = "README.md,docs/*.md"  # any text
    c.model.update(
        d_model=64, n_layers=2, n_heads=8, n_kv_heads=8, head_dim=8, d_ff=192, max_length=128
    )
    c.optimizer.learning_rate = 1e-2  # high, since the model is small
    c.optimizer.warmup = 5
    c.checkpoint.every = 100
    c.samples.prompts = ("The ",)
    return specialise(
        c,
        variant,
        gpt2={f"model.{name}": value for name, value in _shape(preset("gpt2", "tiny")).items()},
        mamba={f"model.{name}": value for name, value in _shape(preset("mamba", "tiny")).items()}
        | {
            "model.d_model": 64,
            "model.n_layers": 3,
            "model.ssm_inner": 140,
            "model.ssm_dt_rank": 4,
        },  # as many parameters as gpt2
        instruct={
            "task": tasks.defaults("instruct", template="alpaca"),
            "data.files": "configs/examples/instruct.jsonl",
        },  # prompts with answers, in any format of docs/data.md
        fsdp={"mesh.data": 1, "mesh.fsdp": -1},  # parameters are sharded over all devices
        tensor={"mesh.data": 1, "mesh.tensor": -1},  # layers are sharded over all devices
    )


def _shape(model):
    """Architecture fields of a model of another family, without its vocabulary."""
    from lm.training.settings import model_section

    fields = model_section(model).to_dict()
    return {
        name: value
        for name, value in fields.items()
        if value is not None and not name.endswith(("token_id", "token_ids"))
    } | {"vocab_size": 0}
