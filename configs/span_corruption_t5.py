"""T5 v1.1 base by span corruption (Raffel et al. 2020, section 3.1; spans of section 3.3.4).

python -m lm.train --config=configs/span_corruption_t5.py --workdir=runs/t5 \
    --config.data.files='data/*.jsonl'
Hardware: 8 GPUs of 80 GB or a TPU slice with as much memory; on fewer, raise accumulate. 568 tokens
of text become 512 encoder tokens and 114 decoder tokens. The paper trains 2^19 updates of 128 rows
and gives no loss. Not run to the end here.

:tiny trains 0.2 M parameters on bytes of README.md and docs in under a minute on a CPU:
loss from 5.9 to about 2.5.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.steps = 524_288  # updates
    c.batch_size = 128  # rows per update
    c.length = 568  # tokens of text per row, with packed documents
    c.tokenizer = "google-t5/t5-base"  # SentencePiece with 100 sentinels, 32,100 tokens
    c.task = tasks.defaults("span_corruption")
    c.task.rate = 0.15  # share of tokens to predict
    c.task.mean_span = 3.0  # mean span length in tokens
    c.model.update(model_section(preset("t5", "v1_1_base")).to_dict())  # architecture and size
    c.model.vocab_size = 0  # the tokenizer's 32,100, rounded up to 32,128
    c.model.dropout = 0.0  # none in pretraining, from v1.1 on
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.model.remat = "dots"  # keep results of matmuls, recompute the rest
    c.optimizer.name = "adafactor"
    c.optimizer.learning_rate = 0.01  # relative to the RMS of each matrix
    c.optimizer.schedule = "inverse_sqrt"  # 1 / sqrt(update) after warm-up
    c.optimizer.warmup = 10_000  # linear, where the paper has a constant 0.01
    c.optimizer.clip = 0.0  # Adafactor has its own clipping
    c.optimizer.weight_decay = 0.0
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
            "optimizer.learning_rate": 0.1,
            "optimizer.warmup": 20,
            "checkpoint.every": 150,
            "eval.every": 150,
            "model.dtype": "float32",
            "model.remat": "none",
            "model.d_model": 64,
            "model.n_layers": 2,
            "model.encoder_layers": 2,
            "model.n_heads": 4,
            "model.n_kv_heads": 4,
            "model.head_dim": 16,
            "model.d_ff": 128,
            "model.max_length": 128,
        },
    )
