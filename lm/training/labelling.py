"""Labelled data and text pairs in a config: check the fields; make the labels, head and rows."""

import math
import re

import jax
import ml_collections

from lm import families
from lm.data import label_rows, labelled
from lm.data.label_rows import Shape
from lm.data.labelled import (
    CLASSIFICATION,
    CONTRASTIVE,
    HEADS,
    QUESTIONS,
    TASKS,
    TOKENS,
    Fields,
    class_names,
)
from lm.data.packing import Packed
from lm.data.sources import Tally
from lm.heads import with_head
from lm.models import LanguageModel, build
from lm.models.config import ConfigError, ModelConfig

OBJECTIVES = TASKS
CLASSIFIER = "head/classifier"  # path of the parameters that give labels
POOLINGS = ("", "mean", "first", "last")


def check(config: ml_collections.ConfigDict) -> None:
    """Raise ConfigError, naming the field, when fields contradict the objective or each other."""
    data, name = config.data, config.objective.name
    if name not in OBJECTIVES:
        return
    if not 0 <= data.max_long <= 1:
        raise ConfigError(f"data.max_long={data.max_long}: expected a share between 0 and 1")
    if name == CONTRASTIVE:
        _check_contrastive(config)
    if name in (QUESTIONS, CONTRASTIVE):
        return
    names = tuple(config.objective[name].labels)
    if (
        len(names) == 1
        or len(set(names)) != len(names)
        or not all(isinstance(label, str) and label for label in names)
    ):
        raise ConfigError(
            f"objective.{name}.labels={names}: expected at least two different names, or () for "
            "those of the data"
        )
    if name == CLASSIFICATION and config.objective.classification.regression and names:
        raise ConfigError(
            f"objective.classification.labels={names}: values have none; set them to (), or "
            "regression=False"
        )


def _check_contrastive(config: ml_collections.ConfigDict) -> None:
    data, o = config.data, config.objective.contrastive
    if not 0 < o.temperature < math.inf:
        raise ConfigError(
            f"objective.contrastive.temperature={o.temperature}: expected a number above 0, such "
            "as 0.05"
        )
    if o.negatives < 0 or bool(o.negatives) != bool(data.negatives_field):
        raise ConfigError(
            f"objective.contrastive.negatives={o.negatives} and "
            f"data.negatives_field={data.negatives_field!r}: "
            "set how many of a record's negatives are read and the field that holds them, or "
            "neither"
        )
    if o.pooling not in POOLINGS:
        raise ConfigError(
            f"objective.contrastive.pooling={o.pooling!r}: expected mean, first or last, or '' "
            "for the model's"
        )
    texts = 2 + o.negatives
    if config.length % texts:
        raise ConfigError(
            f"length={config.length} does not divide by the {texts} texts of a record; make it a "
            f"multiple of {texts}"
        )
    if not data.pair_field and not config.model.dropout:
        raise ConfigError(
            "data.pair_field='' pairs a text with itself, told apart by dropout alone, and "
            "model.dropout=0: "
            "name the field of the positives, or set model.dropout=0.1"
        )
    if config.batch_size == 1 and not o.negatives:
        raise ConfigError(
            "batch_size=1: a pair has the others of its batch as negatives, and there is none; "
            "raise it"
        )


def fields_of(config: ml_collections.ConfigDict) -> Fields:
    """Fields of a record that are read."""
    data, name = config.data, config.objective.name
    regression = name == CLASSIFICATION and config.objective.classification.regression
    negatives = config.objective.contrastive.negatives if name == CONTRASTIVE else 0
    return Fields(
        name,
        data.field,
        data.pair_field,
        data.label_field,
        regression,
        data.negatives_field,
        negatives,
    )


def shape_of(config: ml_collections.ConfigDict, model: ModelConfig) -> Shape:
    """Layout of the rows."""
    data, name = config.data, config.objective.name
    if (
        name == CONTRASTIVE
    ):  # frame texts as retrieval.Encoder does: with the tokenizer's own special tokens
        return Shape(config.length, framed=False, texts=2 + config.objective.contrastive.negatives)
    pairs = bool(data.pair_field) or name == QUESTIONS
    return Shape(
        config.length,
        pairs and model.type_vocab_size > 1,
        bool(data.pair_field),
        data.stride,
        framed=not model.causal,
    )


def batch_fields(
    config: ml_collections.ConfigDict, model: ModelConfig
) -> dict[str, tuple[int, ...]]:
    """Additional fields of a batch: name -> shape of one row."""
    name = config.objective.name
    if name not in OBJECTIVES:
        return {}
    more: dict[str, tuple[int, ...]] = {}
    if name not in (TOKENS, CONTRASTIVE):
        more["labels"] = (2 if name == QUESTIONS else 1,)
    if shape_of(config, model).types:
        more["types"] = (config.length,)
    return more


def with_labels(
    config: ml_collections.ConfigDict, sources: list, model: LanguageModel, params: dict | None
):
    """(model, params) with the head of the objective; other objectives' models are unchanged.

    A new head is drawn from config.seed. Embeddings are pooled as the config says, else as the
    model does, else as `with_head` does by default.

    Label names come from the config, else from a model with this head, else from all records of
    `sources` (the configs of the sources of training data), sorted. Raises ConfigError and
    DataError.
    """
    name, c = config.objective.name, model.config
    if name not in OBJECTIVES:
        return model, params
    if c.encoder_layers:
        raise ConfigError(
            f"objective {name!r} is for models without an encoder beside a decoder, and this "
            f"{c.family} model has one"
        )
    fields: dict = {}
    if name == CONTRASTIVE:
        fields = (
            {"pooling": config.objective.contrastive.pooling}
            if config.objective.contrastive.pooling
            else {}
        )
    elif name != QUESTIONS:
        names = _names(config, sources, c)
        fields = dict(n_labels=len(names) or 1, label_names=names)
        unnamed = c.head == HEADS[name] and not c.label_names and names == class_names(c)
        if unnamed:
            fields["label_names"] = ()
    if c.head == HEADS[name] and all(getattr(c, field) == value for field, value in fields.items()):
        return model, params
    lora = config.adaptation.lora
    if lora.rank and name != CONTRASTIVE and not re.search(lora.pattern, CLASSIFIER):
        raise ConfigError(
            f"adaptation.lora.pattern={lora.pattern!r} leaves {CLASSIFIER} frozen, and it is "
            f"drawn at random, as {config.init_from} has no "
            "such head: add head, as in '(attention|cross|mlp|ssm|head)/'"
        )
    padded = (
        c if c.pad_token_id is not None else c.replace(pad_token_id=0)
    )  # for families whose position ids start after the padding id
    if params is None:
        new = families.other_head(padded, HEADS[name], **fields)
    else:
        headed, params = with_head(
            build(padded), params, HEADS[name], jax.random.key(config.seed), **fields
        )
        new = headed.config
    return build(new.replace(pad_token_id=c.pad_token_id)), params


def _names(config: ml_collections.ConfigDict, sources: list, c: ModelConfig) -> tuple[str, ...]:
    """Names of the labels; () for a numeric label."""
    name = config.objective.name
    section = config.objective[name]
    if name == CLASSIFICATION and section.regression:
        return ()
    if section.labels:
        return tuple(section.labels)
    if c.head == HEADS[name]:
        if c.n_labels == 1:
            raise ConfigError(
                "this model gives a value: set objective.classification.regression, or "
                "objective.classification.labels"
            )
        return class_names(c)
    records = [
        record
        for one in sources
        for record in labelled.read(
            one.data.files, fields_of(one), max_bad_share=one.data.max_bad_share
        )
    ]
    return labelled.names_of(records)


def pack(
    config: ml_collections.ConfigDict,
    model: ModelConfig,
    tokenizer,
    files: str,
    cache,
    tally: Tally | None,
) -> Packed:
    """Pack the records of data.files or of an entry of eval.data. Raises ConfigError, DataError."""
    regression = config.objective.name == CLASSIFICATION and model.n_labels == 1
    names = () if regression else class_names(model)
    return label_rows.pack_files(
        files,
        tokenizer,
        fields_of(config),
        shape_of(config, model),
        names,
        cache,
        max_bad_share=config.data.max_bad_share,
        max_long=config.data.max_long,
        tally=tally,
    )
