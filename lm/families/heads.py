"""Heads that give labels: which of a family's classes holds one, under which names, and what it computes before its labels."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lm.families.table import Row, dense, norm, table
from lm.models.config import ConfigError, ModelConfig

Fields = Callable[[ModelConfig], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class LabelHead:
    """One class: a family's model without a head, and a classifier.

    fields(config of the model without a head) -> the fields of ModelConfig that the class fixes besides `head` and its labels.
    """

    architecture: str  # their class
    head: str  # ours
    table: tuple[Row, ...]
    fields: Fields
    base: str = ""  # the class without a head that it is built on; "" = the family's first
    prefix: str | None = (
        None  # of the names of the model's tensors in this class; None = the family's
    )


def label_head(
    architecture: str, head: str, classifier: str, *, dense_layer: str = "", norm_layer: str = "", base: str = "",
    prefix: str | None = None, fields: Fields | None = None, **fixed: Any,
) -> LabelHead:  # fmt: skip
    """A LabelHead whose layers have the names `classifier`, `dense_layer` and `norm_layer`; `fixed` fields, and `fields` of the config."""
    rows = table(
        dense("head/classifier", classifier),
        dense("head/dense", dense_layer) if dense_layer else [],
        norm("head/norm", norm_layer) if norm_layer else [],
    )
    given = lambda c: dict(head_bias=True) | fixed | (fields(c) if fields else {})
    return LabelHead(architecture, head, rows, given, base, prefix)


def of_decoder(
    stem: str, *, tokens: str = "classifier", spans: bool = True, spans_prefix: str | None = None
) -> tuple[LabelHead, ...]:
    """The classes of a decoder: a row's last token has its label. `tokens` and `spans` say what there is besides sequences."""
    heads = [
        label_head(
            f"{stem}ForSequenceClassification",
            "sequence_classification",
            "score",
            pooling="last",
            head_bias=False,
        )
    ]
    heads += (
        [label_head(f"{stem}ForTokenClassification", "token_classification", tokens)]
        if tokens
        else []
    )
    heads += (
        [
            label_head(
                f"{stem}ForQuestionAnswering",
                "question_answering",
                "qa_outputs",
                prefix=spans_prefix,
            )
        ]
        if spans
        else []
    )
    return tuple(heads)


def of_encoder(
    stem: str, *, dense_layer: str = "", classifier: str = "classifier", **fixed: Any
) -> tuple[LabelHead, ...]:
    """The classes of an encoder of BERT's kind: sequences by their first token, through `dense_layer` or the pooler; tokens; spans."""
    sequence: dict[str, Any] = (
        dict(dense_layer=dense_layer, pooling="first", pooler=not dense_layer) | fixed
    )
    return (
        label_head(
            f"{stem}ForSequenceClassification", "sequence_classification", classifier, **sequence
        ),
        label_head(
            f"{stem}ForTokenClassification", "token_classification", "classifier", pooler=False
        ),
        label_head(f"{stem}ForQuestionAnswering", "question_answering", "qa_outputs", pooler=False),
    )


def of_encoder_decoder(
    stem: str, *, base: str = "", prefix: str | None = None
) -> tuple[LabelHead, ...]:
    """The classes of an encoder-decoder: sequences by the decoder's last token; spans; with `base`, its encoder alone, also tokens."""
    layers: dict[str, Any] = dict(
        dense_layer="classification_head.dense", head_dense="tanh", head_dense_bias=True
    )
    sequence, tokens = f"{stem}ForSequenceClassification", f"{stem}ForTokenClassification"
    heads = [
        label_head(
            sequence,
            "sequence_classification",
            "classification_head.out_proj",
            prefix=prefix,
            pooling="last",
            **layers,
        )
    ]
    heads += (
        [label_head(tokens, "token_classification", "classifier", base=base, prefix=prefix)]
        if base
        else []
    )
    return (*heads, label_head(f"{stem}ForQuestionAnswering", "question_answering", "qa_outputs"))


def labels(hf: dict, head: str) -> dict[str, Any]:
    """n_labels and label_names of config.json, where two are the default and their names LABEL_0, LABEL_1, ... no names."""
    given = hf.get("id2label")
    number = len(given) if given else hf.get("num_labels", 2)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"num_labels={number!r}: expected a positive integer")
    if head == "question_answering":
        if number != 2:
            raise ConfigError(
                f"num_labels={number} is not supported for question answering; 2, where an answer starts and ends, are"
            )
        return dict(n_labels=0)
    try:
        names = (
            tuple(str(name) for _, name in sorted((int(i), name) for i, name in given.items()))
            if given
            else ()
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"id2label={given!r}: expected an object from label numbers to names"
        ) from error
    return dict(n_labels=number, label_names=() if names == _unnamed(number) else names)


def labels_to_hf(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `labels`. One label is a regression's; the kind of more is left to the loss."""
    if not c.n_labels:
        return {}
    names = c.label_names or _unnamed(c.n_labels)
    regression = (
        dict(problem_type="regression")
        if c.n_labels == 1 and c.head == "sequence_classification"
        else {}
    )
    return (
        dict(
            id2label={str(i): name for i, name in enumerate(names)},
            label2id={name: i for i, name in enumerate(names)},
        )
        | regression
    )


def _unnamed(number: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(number))
