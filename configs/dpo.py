"""Preference learning on pairs of answers: DPO, and IPO, SimPO, ORPO or KTO by a variant.

python -m lm.train --config=configs/dpo.py --workdir=runs/dpo --config.data.files=pairs.jsonl
`pairs.jsonl` has rows {"prompt": ..., "chosen": ..., "rejected": ...} (docs/preference.md).
--config.init_from takes any model that was tuned on instructions; low-rank adapters are trained, so
that the reference of DPO is the frozen base. Hardware: one GPU of 16 GB. Not run here at this size.

Variants: :ipo, :simpo, :orpo and :kto are the other losses, at their defaults. :kto also reads rows
{"prompt": ..., "completion": ..., "label": true}.

:tiny trains a small new model on bytes of configs/examples/preferences.jsonl, on a CPU.
The first loss is log 2 = 0.69.
"""

from configs.defaults import defaults, specialise
from lm import tasks


def get_config(variant=""):
    c = defaults()
    c.init_from = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.task = tasks.defaults("dpo", template="jinja")  # the model's own chat template
    if variant == "ipo":
        c.task.kind = "ipo"  # squared distance of the margin from 1 / (2 beta)
    elif variant == "simpo":
        c.task = tasks.defaults("simpo", template="jinja")
    elif variant in ("orpo", "kto"):
        c.task = tasks.defaults(variant, template="jinja")
    c.data.holdout_share = 0.1  # of the pairs, for the held-out accuracy
    c.steps = 300  # updates
    c.batch_size = 8  # rows per update, with several pairs each
    c.length = 1024  # tokens per row; both answers of a pair fit in one
    c.adaptation.lora.rank = 16
    c.optimizer.learning_rate = 1e-4
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 30
    c.optimizer.final = 0.0
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 100
    c.eval.every = 100
    return specialise(
        c,
        variant,
        ipo={},
        simpo={},
        orpo={},
        kto={},
        tiny={  # the same run, small enough for a CPU
            "init_from": "",
            "tokenizer": "bytes",
            "task.template": "tulu",
            "data.files": "configs/examples/preferences.jsonl",
            "steps": 60,
            "batch_size": 8,
            "length": 256,
            "adaptation.lora.rank": 0,
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
