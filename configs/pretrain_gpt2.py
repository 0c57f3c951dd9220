"""GPT-2 124M from scratch, with 2^19 tokens per update, as in nanoGPT and llm.c.

python -m lm.train --config=configs/pretrain_gpt2.py --workdir=runs/gpt2 \
    --config.data.files='data/*.jsonl'
Hardware: 8 GPUs of 80 GB or a TPU slice with as much memory; on fewer, raise accumulate. Expected,
from those projects on OpenWebText or FineWeb: validation loss near 3.3 after 10 B tokens (19,073
updates). Not run to the end here.

:tiny trains 0.2 M parameters on bytes of README.md and docs in seconds on a CPU:
loss from 5.8 to about 5.
:bench measures the speed of a machine.
"""

from configs.defaults import defaults, specialise
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.steps = 19_073  # 10 B tokens
    c.batch_size = 512  # rows per update
    c.length = 1024  # tokens per row
    c.tokenizer = "openai-community/gpt2"  # or a folder from python -m lm.train_tokenizer
    c.model.update(model_section(preset("gpt2", "124m")).to_dict())  # architecture and size
    c.model.vocab_size = 0  # the tokenizer's 50,257, rounded up to 50,304
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.model.remat = "dots"  # keep results of matmuls, recompute the rest
    c.optimizer.learning_rate = 6e-4
    c.optimizer.warmup = 700
    c.optimizer.final = 0.1
    c.checkpoint.every = 1000
    c.eval.every = 500
    c.eval.max_rows = 1024  # about a million tokens per held-out set
    c.samples.prompts = ("The capital of France is", "In the beginning")
    return specialise(
        c,
        variant,
        tiny={  # the same run, small enough for a CPU, on any text: --config.data.files=...
            "data.files": "README.md,docs/*.md",
            "steps": 20,
            "batch_size": 8,
            "length": 64,
            "tokenizer": "bytes",
            "optimizer.warmup": 2,
            "checkpoint.every": 10,
            "eval.every": 10,
            "model.d_model": 64,
            "model.n_layers": 2,
            "model.n_heads": 4,
            "model.n_kv_heads": 4,
            "model.head_dim": 16,
            "model.d_ff": 256,
        },
        bench={  # random tokens: measures the speed without data
            "steps": 60,
            "data.synthetic_rows": 4096,
            "tokenizer": "",
            "model.vocab_size": 50_304,
            "eval.every": 0,
            "checkpoint.every": 60,
            "samples.prompts": (),
            "optimizer.warmup": 10,
        },
    )
