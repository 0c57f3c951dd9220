"""Objectives by their config name: how rows are transformed, and the loss.

A loss is (model, params, batch, rng) -> Loss. The text objectives share one loss, the cross-entropy
of `batch.targets`, and differ in their transforms. The others learn labels, or sentence embeddings
(contrastive).
"""

from lm.objectives import contrastive, denoising, labels, span_corruption, ul2
from lm.objectives.loss import Loss
from lm.objectives.masked import masked
from lm.objectives.next_token import next_token
from lm.objectives.objective import Objective, Transform
from lm.objectives.prefix_lm import prefix_lm

OBJECTIVES = {
    "next_token": Objective(next_token, heads=("causal_lm",)),
    "instruct": Objective(next_token, heads=("causal_lm", "seq2seq_lm")),
    "prefix_lm": Objective(next_token, heads=("causal_lm",), transform=prefix_lm),
    "masked": Objective(
        next_token, heads=("masked_lm",), transform=masked, whole=True, special={"mask": True}
    ),
    "span_corruption": Objective(
        next_token,
        heads=("seq2seq_lm",),
        transform=span_corruption.span_corruption,
        whole=True,
        special={"sentinels": 100},
        longest=span_corruption.longest,
    ),
    "ul2": Objective(
        next_token,
        heads=("seq2seq_lm",),
        transform=ul2.ul2,
        whole=True,
        special={"sentinels": 100},
        longest=ul2.longest,
    ),
    "denoising": Objective(
        next_token,
        heads=("seq2seq_lm",),
        transform=denoising.denoising,
        whole=True,
        special={"mask": True},
    ),
    "classification": Objective(labels.classification, heads=("sequence_classification",)),
    "token_classification": Objective(labels.token_classification, heads=("token_classification",)),
    "question_answering": Objective(labels.question_answering, heads=("question_answering",)),
    "contrastive": Objective(
        contrastive.contrastive,
        heads=("embedding",),
        longest=contrastive.longest,
        options=contrastive.OPTIONS,
        joint=True,
    ),
}

__all__ = ["OBJECTIVES", "Loss", "Objective", "Transform", "next_token"]
