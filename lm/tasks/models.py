"""Auxiliary models: a teacher, reference, generator or critic beside the model that is trained."""

import dataclasses
from collections.abc import Mapping

import flax.struct

from lm.models import LanguageModel
from lm.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Aux:
    """Declaration of an auxiliary model (`Task.aux`).

    model: "same" (the run's own), a run folder, model folder or hub id, or a config.
    start: "base" (the weights of `model`; the run's initial ones if it is "same"), "random", "body"
    (the run's initial weights, and a head that is drawn), or a path whose weights have the shapes
    of `model`.
    trained: the optimizer updates it; otherwise it stays as it is, without dropout.
    tied: path of a parameter -> path of the run's own that takes its place, such as
    {"embeddings/token": "embeddings/token"}. The array exists once.
    heads: that the model may have; () = any. A reward model is read as one with head "value" if
    only that is allowed.
    stored: its outputs on the rows (`Task.stored`) are computed once, before the first step, and it
    is not in the state. It must be frozen.
    own_rows: it reads batch fields of its own, not the run's rows, so its tokenizer, vocabulary,
    length and architecture may differ.
    """

    model: str | ModelConfig = "same"
    start: str = "base"
    trained: bool = False
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heads: tuple[str, ...] = ()
    own_rows: bool = False
    stored: bool = False


@flax.struct.dataclass
class Beside:
    """An auxiliary model as a loss is given it. params: complete, with tied arrays in place."""

    model: LanguageModel = flax.struct.field(pytree_node=False)
    params: dict


# name -> model, as a loss is given them
Models = Mapping[str, Beside]
