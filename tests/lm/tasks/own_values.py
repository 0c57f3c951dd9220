"""A user's task: predict a number, such as a log-probability, at every token of a text."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from lm.batch import TEXT, Field
from lm.data.packed import Packed
from lm.data.read import sources
from lm.heads import with_head
from lm.losses import Loss
from lm.tasks import Task


@dataclasses.dataclass(frozen=True)
class Values(Task):
    """Squared error of the numbers in `field`, one for each byte of the text."""

    field: str = "values"
    scale: float = 1.0  # numbers are divided by it

    heads: ClassVar[tuple[str, ...]] = ("value",)
    makes_head: ClassVar[bool] = True
    new_fields: ClassVar[dict] = {"values": Field(TEXT, np.float32)}

    def prepare(self, start, config, sources, kept):
        model, params = with_head(start.model, start.params, "value")
        return dataclasses.replace(start, model=model, params=params)

    def fields(self, length, model):
        return {"values": (length,)}

    def rows(self, files, part, tools):
        found = [row for _, row in sources.records(sources.find_files(files))]
        shape = (len(found), tools.length)
        tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.uint16)
        values = np.zeros(shape, np.float32)
        for i, row in enumerate(found):
            ids = tools.tokenizer.encode(row["text"], add_special_tokens=False)
            tokens[i, : len(ids)], segments[i, : len(ids)] = ids, 1
            values[i, : len(ids)] = np.array(row[self.field]) / self.scale
        at, size = np.arange(len(found), dtype=np.int32), np.full(len(found), 1, np.int64)
        return Packed(tokens, tokens, segments, at, at * 0 + 1, at, size, {"values": values})

    def loss(self, model, params, batch, rng=None):
        found = model.apply({"params": params}, batch).logits
        errors = jnp.square(found - batch.more["values"]) * batch.weights
        return Loss.of(jnp.sum(errors), jnp.sum(batch.weights), largest=jnp.max(errors))
