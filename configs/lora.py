"""LoRA on conversations: adapters of a small chat model, with its own chat template.

python -m lm.train --config=configs/lora.py --workdir=runs/lora --config.data.files=chat.jsonl
python -m lm.generate --model=runs/lora --chat

`chat.jsonl` has rows {"messages": [{"role": "user", "content": ...}, {"role": "assistant",
"content": ...}]}, or another format of docs/data.md. --config.init_from takes any chat model.
Hardware: one GPU of 8 GB. docs/forgetting.md measures what such adapters forget at this size.
Expected: the loss of held-out conversations (--config.eval.data.heldout=FILE) falls, and answers
end with the end token. Not run here on chat.

:base trains 0.13 M parameters on bytes of configs/examples/instruct.jsonl, as runs/lora-base.
:tiny adapts that run to configs/examples/chat.jsonl, in under a minute on a CPU.
"""

from configs.defaults import defaults, specialise
from lm import tasks


def get_config(variant=""):
    c = defaults()
    c.init_from = (
        "HuggingFaceTB/SmolLM2-135M-Instruct"  # any decoder whose tokenizer has a chat template
    )
    c.task = tasks.defaults("instruct")  # loss on the answers and their end tokens only
    c.task.format = "auto"  # detected from the first record
    c.task.template = "jinja"  # the model's own chat template
    c.steps = 300  # updates
    c.batch_size = 8  # rows per update
    c.length = 512  # tokens per row, with packed conversations
    c.adaptation.lora.rank = 16
    c.optimizer.learning_rate = 5e-4  # about ten times that for all weights
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 20
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 100
    c.eval.every = 100
    small = {  # small enough for a CPU
        "task.template": "tulu",
        "batch_size": 8,
        "length": 256,
        "steps": 60,
        "optimizer.warmup": 10,
        "checkpoint.every": 60,
        "eval.every": 30,
    }
    return specialise(
        c,
        variant,
        base=small
        | {
            "init_from": "",
            "tokenizer": "bytes",
            "data.files": "configs/examples/instruct.jsonl",
            "adaptation.lora.rank": 0,
            "optimizer.learning_rate": 1e-2,
            "model.d_model": 64,
            "model.n_layers": 2,
            "model.n_heads": 4,
            "model.n_kv_heads": 4,
            "model.head_dim": 16,
            "model.d_ff": 192,
        },
        tiny=small
        | {
            "init_from": "runs/lora-base",
            "data.files": "configs/examples/chat.jsonl",
            "optimizer.learning_rate": 1e-2,
        },
    )
