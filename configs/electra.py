"""ELECTRA small: a generator and a discriminator, trained together.

The models and settings of Clark et al. 2020, table 6 (small), on any text.

python -m lm.train --config=configs/electra.py --workdir=runs/electra \
    --config.data.files='data/*.jsonl'
Hardware: one GPU of 16 GB or more. Expected, from table 1 there: a GLUE score of 79.9 after
1 M updates (4 days on one V100). Not run here.

:tiny trains a discriminator of 0.1 M parameters on bytes of README.md and docs, in minutes on a
CPU: loss from 40.4 to about 23.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.steps = 1_000_000  # updates
    c.batch_size = 128  # rows per update
    c.length = 128  # tokens per row, with packed documents
    c.tokenizer = "google-bert/bert-base-uncased"  # WordPiece, 30,522 tokens
    c.task = tasks.defaults("replaced_token_detection")
    c.task.rate = 0.15  # share of tokens that the generator fills in
    c.task.generator_size = 0.25  # of the discriminator's width, heads and d_ff
    c.task.discriminator_weight = 50.0  # factor of the discriminator's loss
    c.model.update(model_section(preset("electra", "small")).to_dict())  # the discriminator
    c.model.vocab_size = 0  # the tokenizer's 30,522, rounded up to 30,528
    c.model.dropout = 0.1
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.optimizer.learning_rate = 5e-4
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 10_000
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-6
    c.optimizer.weight_decay = 0.01
    c.checkpoint.every = 5000
    c.eval.every = 5000
    c.eval.max_rows = 2048  # per held-out set
    return specialise(
        c,
        variant,
        tiny={  # the same run, small enough for a CPU, on any text: --config.data.files=...
            "data.files": "README.md,docs/*.md",
            "steps": 300,
            "batch_size": 16,
            "length": 64,
            "tokenizer": "bytes",
            "task.generator_size": 0.5,
            "optimizer.learning_rate": 2e-3,
            "optimizer.warmup": 20,
            "checkpoint.every": 150,
            "eval.every": 150,
            "model.dropout": 0.0,
            "model.dtype": "float32",
            "model.d_model": 64,
            "model.n_layers": 2,
            "model.n_heads": 4,
            "model.n_kv_heads": 4,
            "model.head_dim": 16,
            "model.d_ff": 128,
            "model.embedding_width": 32,
            "model.max_length": 128,
        },
    )
