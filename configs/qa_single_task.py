"""Extractive question answering: BERT base on SQuAD v1.1 (Devlin et al. 2019, section 4.2).

python -m lm.train --config=configs/qa_single_task.py --workdir=runs/squad \
    --config.data.files=train-v1.1.json
python -m lm.evaluate --model=runs/squad --task=question_answering --data=dev-v1.1.json
Hardware: one GPU of 24 GB. Expected, from the paper's table 2 for one BERT base on the development
set: exact match 80.8, F1 88.5. Not run here.

:tiny trains 0.1 M parameters on bytes of the 18 questions in configs/examples in under a minute on
a CPU, to an exact match above 80 on them.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    c.steps = 8_300  # updates: three epochs of 88,000 windows
    c.batch_size = 32  # windows per update
    c.length = 384  # tokens per window, including the question
    # Its masked language modelling head is replaced by two logits per token, drawn from the seed.
    c.init_from = "google-bert/bert-base-uncased"
    c.task = tasks.defaults("question_answering")
    c.task.stride = 128  # tokens between the starts of windows
    c.model.dropout = 0.1
    c.model.dtype = "bfloat16"  # of activations; parameters and moments are float32
    c.optimizer.learning_rate = 3e-5
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 830  # a tenth of the run
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-6
    c.optimizer.weight_decay = 0.01
    c.eval.every = 1000
    c.checkpoint.every = 1000
    tiny = {
        f"model.{name}": value
        for name, value in model_section(preset("bert", "tiny")).to_dict().items()
    }
    return specialise(
        c,
        variant,
        tiny=tiny
        | {  # the same run, small enough for a CPU, from random weights
            "data.files": "configs/examples/questions.json",
            "eval.data.heldout": "configs/examples/questions.json",
            "init_from": "",
            "tokenizer": "bytes",
            "seed": 1,  # with 0, it still mixes up a few of the questions after 250 updates
            "steps": 200,
            "batch_size": 16,
            "length": 64,
            "task.stride": 16,
            "optimizer.learning_rate": 5e-3,
            "optimizer.warmup": 20,
            "checkpoint.every": 50,
            "eval.every": 50,
            "model.vocab_size": 0,
            "model.dropout": 0.0,
            "model.dtype": "float32",
            "model.max_length": 128,
        },
    )
