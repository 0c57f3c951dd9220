"""Mamba 130M from scratch, as in Gu & Dao 2023, appendix E.2 (scaling laws, the smallest model).

python -m lm.train --config=configs/pretrain_mamba.py --workdir=runs/mamba \
    --config.data.files='data/*.jsonl'
Hardware: 8 GPUs of 80 GB or a TPU slice with as much memory; on fewer, raise accumulate. 4,800
updates of 2^19 tokens are the 2.5 B tokens of the paper's figure 4. Its released model of this size
was trained on 300 B tokens of the Pile (573,000 updates) to a perplexity of 10.56 there (table 3,
GPT-NeoX's tokenizer). Not run to the end here.

:tiny trains 0.1 M parameters on bytes of README.md and docs in seconds on a CPU:
loss from 6.1 to about 2.2.
"""

from configs.defaults import defaults, specialise
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.steps = 4800  # updates
    c.batch_size = 256  # rows per update
    c.length = 2048  # tokens per row
    c.tokenizer = "EleutherAI/gpt-neox-20b"  # 50,277 tokens
    c.model.update(model_section(preset("mamba", "130m")).to_dict())  # architecture and size
    c.model.vocab_size = 0  # the tokenizer's 50,277, rounded up to 50,304
    c.model.dtype = (
        "bfloat16"  # of activations; parameters, moments and the scan's states are float32
    )
    c.model.remat = "dots"  # keep results of matmuls, recompute the rest
    c.optimizer.learning_rate = 3e-3  # five times GPT-3's for this size
    c.optimizer.warmup = 480  # a tenth of the run
    c.optimizer.final = 1 / 300  # final learning rate 1e-5
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 0.1  # none on A_log, D, the bias of dt, and norms
    c.checkpoint.every = 400
    c.eval.every = 400
    c.eval.max_rows = 512  # about a million tokens per held-out set
    c.samples.prompts = ("The capital of France is", "In the beginning")
    return specialise(
        c,
        variant,
        tiny={  # the same run, small enough for a CPU, on any text: --config.data.files=...
            "data.files": "README.md,docs/*.md",
            "steps": 100,
            "batch_size": 16,
            "length": 64,
            "tokenizer": "bytes",
            "optimizer.learning_rate": 1e-2,
            "optimizer.warmup": 10,
            "checkpoint.every": 50,
            "eval.every": 50,
            "model.dtype": "float32",
            "model.remat": "none",
            "model.d_model": 64,
            "model.n_layers": 2,
            "model.ssm_inner": 128,
            "model.ssm_dt_rank": 4,
        },
    )
