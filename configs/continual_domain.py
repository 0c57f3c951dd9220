"""Continual training of RoBERTa base on one domain ("Don't stop pretraining").

Gururangan et al. 2020, section 3 and appendix A.

python -m lm.train --config=configs/continual_domain.py --workdir=runs/domain \
    --config.data.files='domain/*.jsonl' --config.eval.data.domain='domain-heldout/*.jsonl' \
    --config.eval.data.general='general-heldout/*.jsonl'
Hardware: 8 GPUs of 80 GB or a TPU slice with as much memory. eval.data.general measures forgetting.
Expected, from their table 1: masked loss on biomedical papers from 1.32 to 0.99, on computer
science from 1.63 to 1.34. Not run here.

Against forgetting: --config.adaptation.kl.strength=0.1, --config.adaptation.l2_sp=0.01, LoRA, or a
mixture with general text.

:tiny trains 0.1 M parameters on docs from scratch, with README.md held out, in under a minute on a
CPU: loss from 5.8 to about 3.1, held-out loss 3.5.
"""

from ml_collections import ConfigDict

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.init_from = "FacebookAI/roberta-base"
    c.task = tasks.defaults("masked")
    c.steps = 12_500  # updates
    c.batch_size = 2048  # rows per update
    c.accumulate = 8  # micro-batches of 256 rows
    c.length = 512  # tokens per row, with packed documents
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.model.dropout = 0.1
    c.optimizer.learning_rate = 5e-4
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 750  # 6 % of the run
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.98
    c.optimizer.eps = 1e-6
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip = 0.0
    c.eval.data = ConfigDict(
        {"domain": "", "general": ""}
    )  # held-out text of the domain, and general text
    c.eval.every = 500
    c.eval.max_rows = 2048  # per held-out set
    c.checkpoint.every = 500
    model = model_section(preset("roberta", "tiny")).to_dict() if variant == "tiny" else {}
    return specialise(
        c,
        variant,
        tiny={f"model.{name}": value for name, value in model.items() if value is not None}
        | {  # the same run, small enough for a CPU
            "init_from": "",
            "tokenizer": "bytes",
            "data.files": "docs/*.md",
            "eval.data.general": "README.md",
            "steps": 200,
            "batch_size": 16,
            "accumulate": 1,
            "length": 64,
            "optimizer.learning_rate": 2e-3,
            "optimizer.warmup": 20,
            "optimizer.clip": 1.0,
            "checkpoint.every": 100,
            "eval.every": 100,
            "model.vocab_size": 0,
            "model.dropout": 0.0,
            "model.max_length": 128,
            "model.dtype": "float32",
        },
    )
