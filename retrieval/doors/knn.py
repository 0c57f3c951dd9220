"""kNN-LM: mix the next tokens of similar contexts into a model's (Khandelwal et al. 2020).

    p(y) = share p_knn(y) + (1 - share) p_lm(y),  p_knn(y) ~ sum of exp(-d_i / T) with value_i = y

over the k entries of a datastore that are nearest to the context vector, at squared distances d.
"""

import dataclasses
import math
import weakref
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.generation.hooks import Hook
from retrieval.datastore.datastore import Datastore
from retrieval.datastore.snapshot import Neighbours, Snapshot
from retrieval.doors.knn_share import Share
from retrieval.errors import RetrievalError
from retrieval.index.vectors import check_k
from retrieval.memory import Memory

PINS = ("answer", "token")


class Source(NamedTuple):
    """An entry that an answer's token was mixed from.

    passage, offset: where the entry's token is, in tokens of the passage. token: its id.
    weight: what it adds to the probability of that token.
    """

    passage: str
    offset: int
    token: int
    weight: float


def checked(k: int, share: float, temperature: float) -> None:
    """Raise RetrievalError for numbers that no mixture can be made with."""
    check_k(k)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise RetrievalError(
            f"share={share!r}: expected the memory's part of the mixture, from 0 to 1"
        )
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise RetrievalError(f"temperature={temperature!r}: expected a number above 0")
    if not 0 < temperature < math.inf:
        raise RetrievalError(f"temperature={temperature!r}: expected a number above 0")


@dataclasses.dataclass(frozen=True)
class KnnLM(Hook):
    """Hook of lm.generation that mixes in a datastore.

    share: the memory's part, lambda in the paper; with `adaptive`, the part where the small network
    says nothing. temperature: of the distances. adaptive: `Share`, which predicts the part of each
    token; nothing is searched where it is below `skip`.
    memory: the memory of the datastore; its deletions count at once. groups: the reader's access
    groups. pin: "answer", every answer sees one version from its first token to its last; "token",
    every token sees the newest.

    Raises RetrievalError for numbers outside their ranges, and for k beyond the datastore.
    """

    store: Datastore = dataclasses.field(compare=False)
    k: int = 64
    share: float = dataclasses.field(default=0.25, compare=False)
    temperature: float = dataclasses.field(default=1.0, compare=False)
    adaptive: Share | None = dataclasses.field(default=None, compare=False)
    skip: float = dataclasses.field(default=0.0, compare=False)
    memory: Memory | None = dataclasses.field(default=None, compare=False)
    groups: Collection[str] = dataclasses.field(default=(), compare=False)
    pin: str = dataclasses.field(default="answer", compare=False)
    pinned: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)
    tap: str = dataclasses.field(default="", init=False)

    def __post_init__(self):
        checked(self.k, self.share, self.temperature)
        if not 0 <= self.skip <= 1:
            raise RetrievalError(f"skip={self.skip!r}: expected a share, from 0 to 1")
        if self.pin not in PINS:
            raise RetrievalError(f"pin={self.pin!r}: expected {' or '.join(PINS)}")
        object.__setattr__(self, "tap", self.store.identity.tap)
        self.newest().check(self.k)

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.tap,)

    def newest(self) -> Snapshot:
        return self.store.snapshot(self.memory, self.groups)

    def find(self, taps, slots) -> dict:
        vectors = taps[self.tap]
        shares = np.full(len(slots), self.share, np.float32)
        if self.adaptive is not None:
            shares = self.adaptive(vectors)
        wanted = (shares >= self.skip) & (shares > 0)
        shares = np.where(wanted, shares, 0).astype(np.float32)
        tokens = np.zeros((len(slots), self.k), np.int32)
        weights = np.zeros((len(slots), self.k), np.float32)
        sources: list[tuple[Source, ...]] = [()] * len(slots)
        seen = [self._snapshot(slot) for slot in slots]
        for snapshot in {id(one): one for one in seen}.values():
            rows = [at for at, one in enumerate(seen) if one is snapshot and wanted[at]]
            if not rows:
                continue
            found = snapshot.search(vectors[rows], self.k)
            tokens[rows], weights[rows] = found.values, entry_weights(found, self.temperature)
            for at, entries in zip(rows, found.entries, strict=True):
                parts = (shares[at] * weights[at]).tolist()
                each = zip(snapshot.sources(entries), tokens[at].tolist(), parts, strict=True)
                sources[at] = tuple(
                    Source(*place, token, part) for place, token, part in each if part
                )
        return {"tokens": tokens, "weights": weights, "share": shares, "sources": sources}

    def mix(self, logits: jax.Array, found: dict[str, jax.Array]) -> jax.Array:
        rows = jnp.arange(len(logits))[:, None]
        memory = jnp.zeros_like(logits).at[rows, found["tokens"]].add(found["weights"])
        share = found["share"][:, None]
        own = jax.nn.log_softmax(logits) + jnp.log1p(-share)
        return jnp.logaddexp(own, jnp.log(memory) + jnp.log(share))

    def _snapshot(self, slot) -> Snapshot:
        """The version that an answer sees: the newest at its first token."""
        if self.pin == "token":
            return self.newest()
        key, held = id(slot.request), self.pinned.get(id(slot.request))
        if not slot.tokens or held is None or held[0]() is not slot.request:
            for gone in [other for other, (alive, _) in self.pinned.items() if alive() is None]:
                del self.pinned[gone]
            held = self.pinned[key] = weakref.ref(slot.request), self.newest()
        return held[1]


def entry_weights(found: Neighbours, temperature: float) -> np.ndarray:
    """Weight of every neighbour in p_knn, float32 [Q, k]."""
    scores = -found.distances.astype(np.float64) / temperature
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def named(sources: tuple[Any, ...], token: int) -> list[Source]:
    """Of the sources of an answer's token, those that hold this token, heaviest first.

    Entries of the same place, as in overlapping windows, count together.
    """
    total: dict[tuple[str, int], float] = {}
    for one in sources:
        if isinstance(one, Source) and one.token == token:
            place = one.passage, one.offset
            total[place] = total.get(place, 0.0) + one.weight
    return sorted(
        (Source(*place, token, weight) for place, weight in total.items()),
        key=lambda one: -one.weight,
    )
