"""Self-Instruct (Wang et al. 2023): instruction data from a model and a few tasks of people.

python -m lm.self_instruct --config=configs/self_instruct/generate.py --workdir=runs/self_instruct \
    --config.seeds=seed_tasks.jsonl --config.generator=MODEL
The seed file is that of the paper's repository, or one like it. Variant alpaca: one prompt for
instruction, input and output (Taori et al. 2023), at temperature 1.
Hardware: with a model of 135 M parameters, one CPU core keeps 110 instructions and makes 77 tasks
of them in about 25 minutes (the settings of configs/studies/self_instruct.py).

:tiny lets a model of bytes, untrained or nearly so, answer twelve requests from the example seeds:
it shows that the steps run, and keeps no task.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.defaults import specialise
from lm.synthesis.settings import Settings

TINY = {
    "seeds": "configs/examples/seed_tasks.jsonl",
    "instructions": 4,
    "requests": 12,
    "examples": 2,
    "human": 2,
    "instruction_tokens": 32,
    "instance_tokens": 32,
    "context": 512,
}


def get_config(variant=""):
    c = ConfigDict(dataclasses.asdict(Settings()))
    if variant == "alpaca":
        c.update(variant="alpaca", human=3, asked=17, temperature=1.0, top_p=1.0)
        c.update(instruction_tokens=1024, context=2048)
        variant = ""
    return specialise(c, variant, tiny=TINY)
