"""BERT base by masked language modelling.

The architecture of Devlin et al. 2019 with the objective of RoBERTa (Liu et al. 2019, section 4).

python -m lm.train --config=configs/mlm_bert.py --workdir=runs/bert \
    --config.data.files='data/*.jsonl'
Hardware: 8 GPUs of 80 GB or a TPU slice with as much memory; on fewer, raise accumulate. Expected,
from RoBERTa's table 3 for BERT base on BookCorpus and Wikipedia, 1 M updates of 256 rows: held-out
perplexity 3.99, a loss of 1.38. Not run here.

:tiny trains 0.1 M parameters on bytes of README.md and docs in under a minute on a CPU:
loss from 5.8 to about 3.1.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.steps = 1_000_000  # updates
    c.batch_size = 256  # rows per update
    c.length = 512  # tokens per row, with packed documents
    c.tokenizer = "google-bert/bert-base-uncased"  # WordPiece, 30,522 tokens
    c.task = tasks.defaults("masked")  # no next-sentence prediction, and new masks in every epoch
    c.task.rate = 0.15  # share of tokens to predict
    c.task.mask = 0.8  # share of these replaced by [MASK]
    c.task.random = 0.1  # share of these replaced by a random token
    c.model.update(model_section(preset("bert", "base")).to_dict())  # architecture and size
    c.model.vocab_size = 0  # the tokenizer's 30,522, rounded up to 30,528
    c.model.dropout = 0.1
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.optimizer.learning_rate = 1e-4
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
            "model.max_length": 128,
        },
    )
