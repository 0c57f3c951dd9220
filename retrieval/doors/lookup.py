"""Give the values of calls from a fact memory while a text is generated (LMLM, Zhao et al. 2025).

A fact is a passage: its title is the entity, its text "relation: value".
"""

import dataclasses
import math
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lm
from lm.export import load_run_tokenizer
from lm.generation.hooks import Hook
from lm.weights.loading import is_run
from retrieval.doors import calls
from retrieval.doors.knn import Source
from retrieval.errors import RetrievalError
from retrieval.filters import EVERY_GROUP
from retrieval.memory import Memory
from retrieval.passages import Hit
from retrieval.sanitising import one_line

THRESHOLD = 0.6  # least cosine of a fact that is not named exactly, as in the paper
SEARCHED = 5  # facts among which the one that is named exactly is looked for


@dataclasses.dataclass
class Answering:
    """What one text sees: a version of the memory, and the values given so far by their place."""

    request: weakref.ref
    version: int
    values: dict[int, tuple[list[int], str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LookUp(Hook):
    """Hook of lm.generation that writes the value of each call, and names its passage as source.

    memory: a Memory or the folder of one. tokenizer: the model's, or its path. threshold: least
    cosine of a fact; below it the value is "unknown". A text sees one version of the memory. Raises
    RetrievalError for a threshold that is no cosine.
    """

    memory: Any = dataclasses.field(default=None, compare=False)
    tokenizer: Any = dataclasses.field(default=None, compare=False, repr=False)
    threshold: float = dataclasses.field(default=THRESHOLD, compare=False)
    seen: dict = dataclasses.field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        for name, what in (("memory", "of a memory"), ("tokenizer", "of the model")):
            if getattr(self, name) is None:
                raise RetrievalError(f"LookUp: {name} is not given: give the path {what}")
        number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not number or not math.isfinite(self.threshold):
            raise RetrievalError(f"LookUp: threshold={self.threshold!r}: expected a cosine")
        if not isinstance(self.memory, Memory):
            object.__setattr__(self, "memory", Memory.open(self.memory))
        if isinstance(self.tokenizer, str):
            load = load_run_tokenizer if is_run(self.tokenizer) else lm.load_tokenizer
            object.__setattr__(self, "tokenizer", load(self.tokenizer))

    def find(self, taps, slots) -> dict:
        forced = np.full(len(slots), -1, np.int32)
        sources: list[tuple[Source, ...]] = [()] * len(slots)
        for row, slot in enumerate(slots):
            tokens = [*slot.request.tokens, *slot.tokens]
            call = calls.pending(self.tokenizer, tokens)
            own = self._answering(slot)
            if call is None:
                continue
            end, entity, relation = call
            if end not in own.values:
                own.values[end] = self._value(own.version, entity, relation)
            ids, passage = own.values[end]
            at = len(tokens) - end
            forced[row] = ids[at]
            if passage:
                sources[row] = (Source(passage, at, ids[at], 1.0),)
        return {"forced": forced, "sources": sources}

    def mix(self, logits: jax.Array, found: dict[str, jax.Array]) -> jax.Array:
        forced = found["forced"][:, None]
        given = jnp.where(jnp.arange(logits.shape[1]) == forced, 0.0, -jnp.inf)
        return jnp.where(forced >= 0, given, logits)

    def _answering(self, slot) -> Answering:
        key, held = id(slot.request), self.seen.get(id(slot.request))
        if not slot.tokens or held is None or held.request() is not slot.request:
            for gone in [other for other, one in self.seen.items() if one.request() is None]:
                del self.seen[gone]
            len(self.memory)  # moves to the newest version
            held = Answering(weakref.ref(slot.request), self.memory.version)
            self.seen[key] = held
        return held

    def _value(self, version: int, entity: str, relation: str) -> tuple[list[int], str]:
        """(tokens of the value and the end of the call, the passage that it is from)."""
        text = f"{entity} {relation}"
        asked = lambda memory: memory.search([text], SEARCHED, groups=EVERY_GROUP)[0]
        hits = asked(self.memory) if text.strip() else []
        if self.memory.version != version:
            hits = asked(self.memory.as_of(version))
        best = named(hits, entity, relation)
        if best is None and hits and hits[0].score >= self.threshold:
            best = hits[0]
        value = "" if best is None else value_of(best)
        if not value:
            return calls.given(self.tokenizer, calls.UNKNOWN), ""
        return calls.given(self.tokenizer, value), best.id if best else ""


def named(hits: list[Hit], entity: str, relation: str) -> Hit | None:
    """The first fact of exactly this entity and relation."""
    same = lambda a, b: one_line(a).casefold() == one_line(b).casefold()
    for hit in hits:
        if same(hit.title, entity) and same(hit.text.partition(":")[0], relation):
            return hit
    return None


def value_of(hit: Hit) -> str:
    """The value of a fact, without what marks calls; "" for a passage of another form."""
    value = one_line(hit.text.partition(":")[2])
    for mark in calls.MARKS:
        value = one_line(value.replace(mark, " "))
    return value
