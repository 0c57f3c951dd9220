"""Tk-Instruct with T5 small on Super-NaturalInstructions, definition and two examples.

Wang et al. 2022, section 6.

git clone https://github.com/allenai/natural-instructions
python -m lm.train --config=configs/superni_t5_small.py --workdir=runs/tk
python -m lm.evaluate --model=runs/tk --superni=natural-instructions/splits/default/test_tasks.txt
Hardware: one GPU, hours. Expected: ROUGE-L near 40 on the 119 test tasks (their figure 5, T5
small); copying an example gives 28.5. Not run here.

:tiny trains 0.2 M parameters on the tasks of configs/examples, one of them held out, in about a
minute on a CPU: loss there from 5.8 to about 3.8.
"""

from ml_collections import ConfigDict

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.init_from = "google/t5-small-lm-adapt"
    c.task = tasks.defaults("instruct")
    c.data.files = (
        "natural-instructions/splits/default/train_tasks.txt"  # 756 English training tasks
    )
    c.task.format = "superni"
    c.task.template = "tk_instruct"
    c.task.tk_instruct.positive = 2  # the paper's best encoding: definition and two examples
    c.task.cap = 100  # instances per task
    c.task.target_length = 128  # tokens per row of answers
    c.task.max_long = 0.05  # share of examples with too long answers, which are dropped and counted
    c.length = 1024  # tokens per row of packed prompts
    c.steps = 9460  # 2 epochs
    c.batch_size = 8  # rows per update, with about 16 examples in total
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.optimizer.learning_rate = 5e-5
    c.optimizer.schedule = "constant"
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.0
    c.eval.data = ConfigDict({"test": "natural-instructions/splits/default/test_tasks.txt"})
    c.eval.every = 1000
    c.checkpoint.every = 1000
    model = model_section(preset("t5", "tiny")).to_dict() if variant == "tiny" else {}
    return specialise(
        c,
        variant,
        tiny={f"model.{name}": value for name, value in model.items() if value is not None}
        | {  # the same run, small enough for a CPU
            "init_from": "",
            "tokenizer": "bytes",
            "data.files": "configs/examples/tasks",
            "task.hold_out": "task003_*",
            "eval.data.test": "hold_out",
            "steps": 60,
            "batch_size": 8,
            "length": 512,
            "task.target_length": 64,
            "optimizer.learning_rate": 5e-3,
            "optimizer.warmup": 20,
            "checkpoint.every": 30,
            "eval.every": 30,
            "model.vocab_size": 0,
            "model.dropout": 0.0,
            "model.max_length": 512,
            "model.dtype": "float32",
        },
    )
