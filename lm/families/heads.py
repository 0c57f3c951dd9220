"""Label heads: the Hugging Face class, tensor names and layers of each family's classifiers."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lm.families.table import Row, dense, norm, table
from lm.models.config import ConfigError, ModelConfig

Fields = Callable[[ModelConfig], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class LabelHead:
    """One Hugging Face class: a family's model without a head, and a classifier.

    fields(config of the model without a head) returns the fields of ModelConfig that the class
    fixes, besides `head` and the labels.
    """

    architecture: str  # Hugging Face class
    head: str  # our name of the head
    table: tuple[Row, ...]
    fields: Fields
    base: str = ""  # class without a head that it extends; "" = the family's first
    # prefix of the model's tensor names in this class; None = the family's
    prefix: str | None = None


def label_head(
    architecture: str,
    head: str,
    classifier: str,
    *,
    dense_layer: str = "",
    norm_layer: str = "",
    base: str = "",
    prefix: str | None = None,
    fields: Fields | None = None,
    **fixed: Any,
) -> LabelHead:
    """Build a LabelHead with the given names of its layers.

    The class fixes the `fixed` fields, and those that `fields` computes from the config.
    """
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
    """Label heads of a decoder; a sequence's label is read from its last token.

    `tokens` (the classifier's tensor name) and `spans` select further heads.
    """
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
    """Label heads of a BERT-like encoder: sequences, tokens and spans.

    A sequence's label is read from its first token, through `dense_layer` or the pooler.
    """
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
    """Label heads of an encoder-decoder: sequences, spans and, with `base`, tokens.

    A sequence's label is read from the decoder's last token. `base` is the class of the encoder
    alone.
    """
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
    """Read n_labels and label_names from config.json.

    The default is two labels. The names LABEL_0, LABEL_1, ... count as no names.
    """
    given = hf.get("id2label")
    number = len(given) if given else hf.get("num_labels", 2)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(f"num_labels={number!r}: expected a positive integer")
    if head == "replaced_token_detection":  # one logit, whatever num_labels says
        return dict(n_labels=0)
    if head == "question_answering":
        if number != 2:
            raise ConfigError(
                f"num_labels={number} is not supported for question answering; 2, "
                "where an answer starts and ends, are"
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
    """Inverse of `labels`.

    A single label means regression; with more, the loss decides the problem type.
    """
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
