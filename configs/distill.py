"""A GPT-2 of half the layers, from the predictions of GPT-2 124M.

Distillation (Hinton, Vinyals & Dean 2015, section 2) with the depth of DistilGPT-2 (Sanh et al.
2019): six layers of GPT-2's width.

python -m lm.train --config=configs/distill.py --workdir=runs/distil \
    --config.data.files='data/*.jsonl'
Any causal model with the same tokenizer can be the teacher, and any other the student, such as a
Mamba: --config.task.teacher=runs/gpt2. Hardware: 8 GPUs of 80 GB; on fewer, raise accumulate.
Not run here.

A teacher that is slow to run is run once, and its 64 most probable tokens are stored:
python -m lm.teacher_outputs --config=configs/distill.py --workdir=runs/outputs \
    --config.data.files='data/*.jsonl' --config.task.top_k=64
The training command then gets --config.task.outputs=runs/outputs.

:tiny trains a Mamba of 0.1 M parameters on bytes of README.md and docs, in minutes on a CPU. Its
teacher is the run of configs/tiny.py in runs/tiny: loss from 6.6 to about 0.3.
"""

from configs.defaults import defaults, specialise
from configs.tiny import get_config as tiny_config
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.steps = 100_000  # updates
    c.batch_size = 256  # rows per update
    c.length = 1024  # tokens per row
    c.tokenizer = "openai-community/gpt2"  # the teacher's
    c.task = tasks.defaults("distillation", teacher="openai-community/gpt2")
    c.task.temperature = 2.0  # of both predictions in the divergence
    c.task.soft = 0.9  # share of the divergence in the loss; the rest is that of the text
    c.model.update(model_section(preset("gpt2", "124m", n_layers=6)).to_dict())
    c.model.vocab_size = 50_257  # the teacher's, not rounded
    c.model.dtype = "bfloat16"  # of activations, also the teacher's
    c.optimizer.learning_rate = 6e-4
    c.optimizer.warmup = 2000
    c.optimizer.weight_decay = 0.1
    c.checkpoint.every = 5000
    c.eval.every = 5000
    c.eval.max_rows = 2048  # per held-out set
    student = tiny_config("mamba").model
    return specialise(
        c,
        variant,
        tiny={  # the same run, small enough for a CPU, on any text: --config.data.files=...
            "task.teacher": "runs/tiny",
            "data.files": "README.md,docs/*.md",
            "steps": 200,
            "batch_size": 16,
            "length": 64,
            "tokenizer": "bytes",
            "optimizer.learning_rate": 1e-2,
            "optimizer.warmup": 5,
            "checkpoint.every": 100,
            "eval.every": 100,
            **{f"model.{name}": value for name, value in student.items() if value is not None},
        },
    )
