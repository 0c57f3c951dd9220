"""Reward model: scores of answers from preference pairs (Ouyang et al. 2022, equation 1).

python -m lm.train --config=configs/reward_model.py --workdir=runs/reward \
    --config.data.files=pairs.jsonl
`pairs.jsonl` has rows {"prompt": ..., "chosen": ..., "rejected": ...} (docs/preference.md).
--config.init_from takes any decoder or Mamba. The run exports to a sequence classifier of
Hugging Face with one label. Hardware: one GPU of 16 GB. Not run here at this size.

:tiny trains a small new model on bytes of configs/examples/preferences.jsonl, on a CPU.
"""

from configs.defaults import defaults, specialise
from lm import tasks


def get_config(variant=""):
    c = defaults()
    c.init_from = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.task = tasks.defaults("reward", template="jinja")  # the model's own chat template
    c.data.holdout_share = 0.1  # of the pairs, for the held-out accuracy
    c.steps = 300  # updates
    c.batch_size = 8  # rows per update, with several pairs each
    c.length = 1024  # tokens per row; both answers of a pair fit in one
    c.optimizer.learning_rate = 2e-5
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 30
    c.optimizer.final = 0.0
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 100
    c.eval.every = 100
    return specialise(
        c,
        variant,
        tiny={  # the same run, small enough for a CPU
            "init_from": "",
            "tokenizer": "bytes",
            "task.template": "tulu",
            "data.files": "configs/examples/preferences.jsonl",
            "steps": 60,
            "batch_size": 8,
            "length": 256,
            "optimizer.learning_rate": 1e-3,
            "optimizer.warmup": 5,
            "checkpoint.every": 60,
            "eval.every": 20,
            "model.d_model": 64,
            "model.n_layers": 2,
            "model.n_heads": 4,
            "model.n_kv_heads": 4,
            "model.head_dim": 16,
            "model.d_ff": 192,
        },
    )
