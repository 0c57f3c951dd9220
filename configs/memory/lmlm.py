"""Facts kept out of the weights: values come from calls of a memory (LMLM, Zhao et al. 2025).

python -m lm.train --config=configs/memory/lmlm.py --workdir=runs/lmlm \
    --config.data.files=annotated.jsonl --config.tokenizer=TOKENIZER
A Llama of 22 M parameters learns texts whose facts are annotated: JSON lines with `text` and
`facts`, a list of objects with entity, relation and value. Hardware: a GPU. Not run here.

:tiny learns to copy what a call gives: eight sentences, in bytes, with a value of another sentence
in half of the calls. Two minutes on a CPU.
"""

from configs.defaults import defaults, specialise
from lm import tasks

TINY = {
    "steps": 300,
    "batch_size": 16,
    "length": 96,
    "tokenizer": "bytes",
    "data.files": "configs/examples/annotated.jsonl",
    "task.swap": 0.9,
    "task.copies": 40,
    "model.d_model": 64,
    "model.n_layers": 2,
    "model.n_heads": 4,
    "model.n_kv_heads": 4,
    "model.head_dim": 16,
    "model.d_ff": 192,
    "model.max_length": 128,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup": 20,
    "checkpoint.every": 300,
}


def get_config(variant=""):
    c = defaults()
    c.steps = 20_000  # updates
    c.batch_size = 64  # rows per update
    c.length = 512  # tokens per row
    c.task = tasks.defaults(
        "retrieval.tasks.lmlm:LMLM",
        swap=0.1,  # share of facts with another value of their relation
        dropout=0.05,  # share of facts that the memory does not know
    )
    c.data.files = "annotated.jsonl"
    c.model.update(
        d_model=384, n_layers=8, n_heads=6, n_kv_heads=6, head_dim=64, d_ff=1024, max_length=1024
    )
    c.optimizer.learning_rate = 6e-4
    c.optimizer.warmup = 500
    return specialise(c, variant, tiny=TINY)
