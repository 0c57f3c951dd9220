"""Stanford Alpaca: LLaMA 7B instruct-tuned on 52,002 examples (Taori et al. 2023).

python -m lm.train --config=configs/alpaca_llama.py --workdir=runs/alpaca \
    --config.data.files=alpaca_data.json
Hardware: 8 GPUs of 80 GB. Hyper-parameters are those of the repository's table.
--config.init_from takes any decoder. --config.adaptation.lora.rank=16 with a learning rate of 2e-4
trains adapters on one GPU. The authors give no loss; their model won 90 of 179 blind comparisons
with text-davinci-003. Not run here.

:tiny trains 0.13 M parameters on configs/examples/instruct.jsonl, in under a minute on a CPU:
loss from 5.7 to about 2.2.
"""

from configs.defaults import defaults, specialise
from lm import tasks


def get_config(variant=""):
    c = defaults()
    c.init_from = "huggyllama/llama-7b"
    c.task = tasks.defaults("instruct")  # loss on the answers and their end token only
    c.task.format = "alpaca"
    c.task.template = "alpaca"  # ends in "### Response:", directly before the answer
    c.task.too_long = "drop"  # the authors cut answers, with their end tokens, at 512
    c.steps = 1218  # 3 epochs
    c.batch_size = 48  # rows per update, with about 128 examples in total
    c.length = 512  # tokens per row, with packed examples
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.model.remat = "full"  # keep the inputs of layers, recompute the rest
    c.mesh.data = 1
    c.mesh.fsdp = -1  # shard parameters and moments over all devices
    c.optimizer.learning_rate = 2e-5
    c.optimizer.warmup = 37  # 3 % of the run
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 200
    c.eval.every = 200
    return specialise(
        c,
        variant,
        tiny={  # the same run, small enough for a CPU
            "init_from": "",
            "tokenizer": "bytes",
            "data.files": "configs/examples/instruct.jsonl",
            "steps": 150,
            "batch_size": 8,
            "length": 512,
            "mesh.data": -1,
            "mesh.fsdp": 1,
            "optimizer.learning_rate": 1e-2,
            "optimizer.warmup": 10,
            "checkpoint.every": 75,
            "eval.every": 75,
            "model.dtype": "float32",
            "model.remat": "none",
            "model.d_model": 64,
            "model.n_layers": 2,
            "model.n_heads": 4,
            "model.n_kv_heads": 4,
            "model.head_dim": 16,
            "model.d_ff": 192,
        },
    )
