"""Text classifier: BERT base with labels, fine-tuned as in Devlin et al. 2019, section 4.1.

python -m lm.train --config=configs/classify.py --workdir=runs/topics \
    --config.data.files=labelled.jsonl
python -m lm.evaluate --model=runs/topics --task=classification --data=heldout.jsonl
python -m lm.label --model=runs/topics --data=new.txt --output=labels.jsonl

`labelled.jsonl` has rows {"text": ..., "label": ...} (or CSV with these columns). The label names
are read from it. --config.init_from takes any encoder or decoder. Hardware: one GPU of 8 GB.
Expected with 1,000 records or more: the accuracy of the paper's table 1, 93.5 % on SST-2. Not run
here at this size.

:tiny trains 0.1 M parameters on bytes of configs/examples/topics.jsonl from scratch, in under a
minute on a CPU: loss from 1.1 to about 0.1, with all of its texts classified correctly.
"""

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.training.settings import model_section


def get_config(variant=""):
    c = defaults()
    # Its masked language modelling head is replaced by a classifier, drawn from the seed.
    c.init_from = "google-bert/bert-base-uncased"
    c.task = tasks.defaults("classification")
    c.task.field = "text"
    c.task.label_field = "label"
    c.task.max_long = 1.0  # any share of texts may be longer than a row and is cut
    c.steps = 600  # updates
    c.batch_size = 32  # texts per update
    c.length = 128  # tokens per text
    c.model.dropout = 0.1
    c.optimizer.learning_rate = 3e-5
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = 60  # a tenth of the run
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.01
    c.eval.every = 200
    c.checkpoint.every = 200
    tiny = {
        f"model.{name}": value
        for name, value in model_section(preset("bert", "tiny")).to_dict().items()
    }
    return specialise(
        c,
        variant,
        tiny=tiny
        | {  # the same run, small enough for a CPU, from random weights
            "data.files": "configs/examples/topics.jsonl",
            "init_from": "",
            "tokenizer": "bytes",
            "steps": 60,
            "batch_size": 16,
            "length": 64,
            "optimizer.learning_rate": 3e-3,
            "optimizer.warmup": 20,
            "checkpoint.every": 60,
            "eval.every": 30,
            "model.vocab_size": 0,
            "model.dropout": 0.0,
            "model.max_length": 128,
        },
    )
