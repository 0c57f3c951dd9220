"""T5 v1.1 base by span corruption: the baseline of Raffel et al. 2020, section 3.1, with the spans of section 3.3.4.

python -m lm.train --config=configs/span_corruption_t5.py --workdir=runs/t5 --config.data.files='data/*.jsonl'
For 8 GPUs of 80 GB or a TPU slice with as much memory; on fewer, raise accumulate until it fits. 568 tokens of text make 512 to read and
114 to write. The paper trains 2^19 updates of 128 rows and gives no loss; this was not run to the end here.

:tiny trains 0.2 M parameters on bytes in under a minute of a CPU: on README.md and docs, loss from 5.9 to about 2.5.
"""

from configs.defaults import defaults, specialise
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.steps = 524_288  # updates
    c.batch_size = 128  # rows an update
    c.length = 568  # tokens of text a row, documents packed
    c.tokenizer = "google-t5/t5-base"  # SentencePiece with 100 sentinels, 32,100 tokens
    c.objective.name = "span_corruption"
    c.objective.span_corruption.rate = 0.15  # share of the tokens to write
    c.objective.span_corruption.mean_span = 3.0  # tokens a span
    c.model.update(model_section(preset("t5", "v1_1_base")).to_dict())  # architecture and size
    c.model.vocab_size = 0  # the tokenizer's 32,100, rounded up to 32,128
    c.model.dropout = 0.0  # none in pretraining, from v1.1 on
    c.model.dtype = "bfloat16"  # of activations; parameters and moments stay float32
    c.model.remat = "dots"  # keep matmul results, recompute the rest
    c.optimizer.name = "adafactor"
    c.optimizer.learning_rate = 0.01  # relative to each matrix's own size
    c.optimizer.schedule = "inverse_sqrt"  # 1 / sqrt(update) from here on
    c.optimizer.warmup = 10_000  # a rise, where the paper stays at 0.01
    c.optimizer.clip = 0.0  # Adafactor has a clipping of its own
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 5000
    c.eval.every = 5000
    c.eval.max_rows = 2048  # of each held-out set
    return specialise(
        c,
        variant,
        tiny={  # the same run at a size for a CPU, on any text: --config.data.files=...
            "data.files": "README.md,docs/*.md", "steps": 300, "batch_size": 16, "length": 64, "tokenizer": "bytes",
            "optimizer.learning_rate": 0.1, "optimizer.warmup": 20, "checkpoint.every": 150, "eval.every": 150,
            "model.dtype": "float32", "model.remat": "none", "model.d_model": 64, "model.n_layers": 2, "model.encoder_layers": 2,
            "model.n_heads": 4, "model.n_kv_heads": 4, "model.head_dim": 16, "model.d_ff": 128, "model.max_length": 128,
        },
    )  # fmt: skip
