"""Any objective with any family it is defined for, at a size for a CPU: seconds a run.

python -m lm.train --config=configs/smoke.py:OBJECTIVE,FAMILY --workdir=runs/smoke        # e.g. masked,roberta
Expected: a loss below BELOW[OBJECTIVE] at the end (tests/lm/test_smoke.py runs them); python -m lm.preview shows what is learned from.
"""

from configs.defaults import defaults
from lm.families import FAMILIES, preset
from lm.models.config import ConfigError, nearest
from lm.objectives import OBJECTIVES
from lm.training.settings import model_section

BELOW = {  # nats; a byte costs 5.5 untrained
    "next_token": 3.5, "instruct": 3.5, "prefix_lm": 3.5, "masked": 3.6, "span_corruption": 3.8, "ul2": 3.8, "denoising": 3.5,
    "classification": 0.7, "token_classification": 0.7, "question_answering": 2.8,  # of 1.1, 1.6 and 4.2 untrained
    "contrastive": 1.0,  # of 3.5
}  # fmt: skip


LABELLED = {  # files, field of the text
    "classification": ("configs/examples/topics.jsonl", "text"), "token_classification": ("configs/examples/names.jsonl", "tokens"),
    "question_answering": ("configs/examples/questions.json", "text"), "contrastive": ("configs/examples/pairs.jsonl", "question"),
}  # fmt: skip


def suits(objective: str, family: str) -> bool:
    """Whether an objective is for a family's models: those with its head, or those that take it and have no encoder beside a decoder."""
    model, heads = preset(family, "tiny"), OBJECTIVES[objective].heads
    if objective == "contrastive":
        return not model.encoder_layers
    if objective in LABELLED:
        return not model.encoder_layers and any(
            given.head in heads for given in FAMILIES[family].labels
        )
    return model.head in heads


def get_config(variant="next_token,llama"):
    objective, _, family = variant.partition(",")
    for what, name, known in (("objective", objective, BELOW), ("family", family, FAMILIES)):
        if name not in known:
            raise ConfigError(
                f"{what} {name!r} is unknown{nearest(name, known)}; give OBJECTIVE,FAMILY, e.g. masked,bert"
            )
    c = defaults()
    c.steps = 60  # updates
    c.batch_size = 16  # rows an update
    c.length = 64  # tokens a row
    c.tokenizer = "bytes"  # one token a byte
    c.data.files = "LICENSE"  # any text; this one stays as it is, so that figures do too
    c.objective.name = objective
    if objective == "instruct":
        c.data.files = "configs/examples/instruct.jsonl"
        c.data.format = "alpaca"
        c.data.template = "plain"  # the shortest
        c.length = 128
        c.data.target_length = 16 if preset(family, "tiny").encoder_layers else 0
    if objective in LABELLED:
        c.data.files, c.data.field = LABELLED[objective]
    if objective == "contrastive":
        c.data.pair_field, c.data.negatives_field = "passage", "others"
        c.objective.contrastive.negatives = 1
        c.length = 120  # of three texts
    model = preset(family, "tiny")
    heads = OBJECTIVES[objective].heads
    if not suits(objective, family):
        raise ConfigError(
            f"objective {objective!r} is for models with the head {' or '.join(heads)}, and {family} has {model.head}"
        )
    c.model.update(model_section(model).to_dict())
    c.model.vocab_size = 0  # the tokenizer's
    c.model.dropout = 0.0
    c.model.max_length = 128  # tokens a document
    c.optimizer.learning_rate = (
        3e-3 if objective == "classification" else 1e-2
    )  # at more, ELECTRA's labels are lost again
    c.optimizer.warmup = 20
    c.log.every = 20
    c.checkpoint.every = 30
    return c
