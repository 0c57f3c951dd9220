"""BERT base fine-tuned on a task of GLUE, as in Devlin et al. 2019, section 4.1.

tfds build glue/mrpc --file_format=array_record
python -m lm.train --config=configs/glue_bert.py:mrpc --workdir=runs/mrpc
python -m lm.evaluate --model=runs/mrpc --task=classification --data=tfds:glue/mrpc:validation
The variants are cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte and wnli. Files with TFDS's field
names (JSONL, or TSV with a header line) serve as well, with labels as numbers or names:
--config.data.files=train.tsv --config.evals.validation.files=dev.tsv

Hardware: one GPU of 8 GB, minutes to hours. Three epochs of batches of 32; the paper takes the best
of the learning rates 5e-5, 4e-5, 3e-5 and 2e-5 on the validation set. Expected on the test sets, of
which only GLUE's server has the labels (their table 1, BERT base): MNLI 84.6 matched and 83.4
mismatched, QNLI 90.5, SST-2 93.5 and RTE 66.4 accuracy; QQP 71.2 and MRPC 88.9 F1; CoLA 52.1
Matthews correlation; STS-B 85.8 Spearman correlation. WNLI is not in the paper. Not run here.

:tiny trains 0.1 M parameters on bytes of configs/examples/paraphrases.jsonl, in the form of MRPC,
from scratch in seconds on a CPU: loss from 0.7 to about 0.0.
"""

import dataclasses

from configs.defaults import defaults, specialise
from lm import tasks
from lm.families import preset
from lm.models.config import ConfigError, nearest
from lm.training.settings import model_section


@dataclasses.dataclass(frozen=True)
class Glue:
    """One task. texts: the fields of its texts. labels: names in TFDS's order; () = a value."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    records: int  # of the training set


PAIR = ("sentence1", "sentence2")
ENTAILED = ("entailment", "not_entailment")
GLUE = {
    "cola": Glue(("sentence",), ("unacceptable", "acceptable"), 8_551),
    "sst2": Glue(("sentence",), ("negative", "positive"), 67_349),
    "mrpc": Glue(PAIR, ("not_equivalent", "equivalent"), 3_668),
    "qqp": Glue(("question1", "question2"), ("not_duplicate", "duplicate"), 363_849),
    "stsb": Glue(PAIR, (), 5_749),
    "mnli": Glue(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), 392_702),
    "qnli": Glue(("question", "sentence"), ENTAILED, 104_743),
    "rte": Glue(PAIR, ENTAILED, 2_490),
    "wnli": Glue(PAIR, ENTAILED[::-1], 635),
}
EPOCHS, BATCH = 3, 32


def get_config(variant="mrpc"):
    name = "mrpc" if variant in ("", "tiny") else variant
    if name not in GLUE:
        raise ConfigError(
            f"variant {variant!r} is unknown{nearest(variant, GLUE)}; this config has "
            f"{', '.join(GLUE)} and tiny"
        )
    glue = GLUE[name]
    c = defaults()
    # Its masked language modelling head is replaced by a classifier, drawn from the seed.
    c.init_from = "google-bert/bert-base-uncased"
    c.data.files = f"tfds:glue/{name}:train"
    c.data.max_bad_share = 0.001  # some questions of QQP are empty
    c.task = tasks.defaults("classification")
    c.task.field, c.task.pair_field = (*glue.texts, "")[:2]
    c.task.label_field = "label"
    c.task.labels = glue.labels  # a label that is a number is the place of a name
    c.task.regression = not glue.labels
    c.task.max_long = 1.0  # any share of texts may be longer than a row and is cut
    c.batch_size = BATCH  # texts or pairs per update
    c.steps = -(-EPOCHS * glue.records // BATCH)  # updates
    c.length = 128  # tokens per text or pair
    c.model.dropout = 0.1
    c.optimizer.learning_rate = 3e-5
    c.optimizer.schedule = "linear"
    c.optimizer.warmup = c.steps // 10
    c.optimizer.final = 0.0
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-6
    c.optimizer.weight_decay = 0.01
    every = max(1, c.steps // EPOCHS)
    c.checkpoint.every = every
    sets = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)
    c.evals = {  # accuracy, F1, Matthews correlation; for values Pearson and Spearman
        one: {"type": "labels", "files": f"tfds:glue/{name}:{one}", "every": every} for one in sets
    }
    tiny = {
        f"model.{field}": value
        for field, value in model_section(preset("bert", "tiny")).to_dict().items()
    }
    return specialise(
        c,
        "tiny" if variant == "tiny" else "",
        tiny=tiny
        | {  # the same run, small enough for a CPU, from random weights
            "data.files": "configs/examples/paraphrases.jsonl",
            "evals.validation.files": "configs/examples/paraphrases.jsonl",
            "evals.validation.every": 25,
            "init_from": "",
            "tokenizer": "bytes",
            "steps": 50,
            "batch_size": 24,
            "length": 96,
            "optimizer.learning_rate": 3e-3,
            "optimizer.warmup": 20,
            "checkpoint.every": 50,
            "model.vocab_size": 0,
            "model.dropout": 0.0,
            "model.max_length": 128,
        },
    )
