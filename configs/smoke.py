"""Smoke run of any task with a family that supports it: seconds on a CPU.

python -m lm.train --config=configs/smoke.py:TASK,FAMILY --workdir=runs/smoke
For example smoke.py:masked,roberta. Expected: a final loss below BELOW[TASK]
(tests/lm/test_smoke.py runs them). python -m lm.preview shows the training rows.
"""

from configs.defaults import defaults
from lm import tasks
from lm.families import FAMILIES, preset
from lm.models.config import ConfigError, nearest
from lm.training.settings import model_section

BELOW = {  # nats; an untrained model has a loss of 5.5 per byte
    "next_token": 3.5,
    "instruct": 3.5,
    "prefix_lm": 3.5,
    "masked": 3.6,
    "span_corruption": 3.8,
    "ul2": 3.8,
    "denoising": 3.5,
    "classification": 0.7,
    "token_classification": 0.7,
    "question_answering": 2.8,  # untrained: 1.1, 1.6 and 4.2 for these three
    "contrastive": 1.0,  # untrained: 3.5
    "distillation": 3.5,
    "replaced_token_detection": 35.0,  # untrained: 5.5 + 50 * 0.7
}


LABELLED = {  # task -> (files, field of the text)
    "classification": ("configs/examples/topics.jsonl", "text"),
    "token_classification": ("configs/examples/names.jsonl", "tokens"),
    "question_answering": ("configs/examples/questions.json", ""),
    "contrastive": ("configs/examples/pairs.jsonl", "question"),
}


def suits(task: str, family: str) -> bool:
    """Whether a task supports a family: a task on labels makes its head for every one."""
    heads = tasks.TASKS[task].heads
    if task == "replaced_token_detection":  # its head takes the place of that for masked tokens
        heads = tasks.TASKS["masked"].heads
    return task in LABELLED or preset(family, "tiny").head in heads


def get_config(variant="next_token,llama"):
    task, _, family = variant.partition(",")
    for what, name, known in (("task", task, BELOW), ("family", family, FAMILIES)):
        if name not in known:
            raise ConfigError(
                f"{what} {name!r} is unknown{nearest(name, known)}; give TASK,FAMILY, e.g. "
                "masked,bert"
            )
    c = defaults()
    c.steps = 60  # updates
    c.batch_size = 16  # rows per update
    c.length = 64  # tokens per row
    c.tokenizer = "bytes"  # one token per byte
    c.data.files = "LICENSE"  # a text that does not change, so that losses are stable
    c.task = tasks.defaults(task)
    if task == "instruct":
        c.data.files = "configs/examples/instruct.jsonl"
        c.task.format = "alpaca"
        c.task.template = "plain"  # the shortest template
        c.length = 128
        c.task.target_length = 16 if preset(family, "tiny").encoder_layers else 0
    if task == "distillation":  # the model of step 0, which has little weight
        c.task.teacher, c.task.soft = "same", 0.01
    if task in LABELLED:
        c.data.files, field = LABELLED[task]
        c.task.update({"field": field} if field else {})
    if task == "contrastive":
        c.task.pair_field, c.task.negatives_field = "passage", "others"
        c.task.negatives = 1
        c.length = 120  # divides by three texts
    model = preset(family, "tiny")
    heads = tasks.TASKS[task].heads
    if not suits(task, family):
        raise ConfigError(
            f"task {task!r} is for models with the head {' or '.join(heads)}, and "
            f"{family} has {model.head}"
        )
    c.model.update(model_section(model).to_dict())
    c.model.vocab_size = 0  # that of the tokenizer
    c.model.dropout = 0.0
    c.model.max_length = 128  # tokens per document
    c.optimizer.learning_rate = (
        3e-3 if task == "classification" else 1e-2
    )  # at a higher rate, ELECTRA unlearns the labels
    c.optimizer.warmup = 20
    c.log.every = 20
    c.checkpoint.every = 30
    return c
