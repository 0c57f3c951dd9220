"""BART base by denoising: text infilling and sentence permutation.

Lewis et al. 2020, section 2.2 and, for large models, section 5.1.

python -m lm.train --config=configs/denoise_bart.py --workdir=runs/bart \
    --config.data.files='data/*.jsonl'
Hardware: 8 GPUs of 80 GB or a TPU slice with as much memory; on fewer, raise accumulate. The paper
compares base models after 1 M updates of 256 rows (section 4) and gives no loss. Not run to the end
here.

:tiny trains 0.2 M parameters on bytes of README.md and docs in about a minute on a CPU:
loss from 5.8 to about 3.5, near the entropy of single bytes. Copying from the input is learned
later.
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
    c.tokenizer = "facebook/bart-base"  # GPT-2's byte-level BPE with <mask>, 50,265 tokens
    c.task = tasks.defaults("denoising")
    c.task.rate = 0.3  # share of tokens in masked spans
    c.task.mean_span = 3.0  # mean of the Poisson distribution of span lengths
    c.task.permute_sentences = True  # of all texts
    c.model.update(model_section(preset("bart", "base")).to_dict())  # architecture and size
    c.model.vocab_size = 0  # the tokenizer's 50,265, rounded up to 50,304
    c.model.dropout = 0.1
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.model.remat = "dots"  # keep results of matmuls, recompute the rest
    c.optimizer.learning_rate = 4e-4
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 10_000
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-6
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip = 0.1
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
            "optimizer.learning_rate": 5e-3,
            "optimizer.warmup": 20,
            "optimizer.clip": 1.0,
            "checkpoint.every": 150,
            "eval.every": 150,
            "model.dropout": 0.0,
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
