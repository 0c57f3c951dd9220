"""Observer: a model's context vectors at every predicted token of rows, and its losses there."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch
from lm.data.packed import Packed
from lm.losses import cross_entropy
from lm.losses.tokens import head_of
from lm.models import LanguageModel, inputs
from lm.models.config import LM_HEADS
from lm.models.taps import tapped
from lm.tasks import pieces
from retrieval.datastore.identity import Identity, checked_tap
from retrieval.errors import RetrievalError


class Observed(NamedTuple):
    """N predictions.

    vectors: float32 [N, D], the tap where the token is predicted: before it or, in a masked
    language model, at its mask. targets: int32 [N]. losses: float32 [N], -log p of the model.
    rows, places: int64 [N], where they are in the packed rows.
    """

    vectors: np.ndarray
    targets: np.ndarray
    losses: np.ndarray
    rows: np.ndarray
    places: np.ndarray


@dataclasses.dataclass(frozen=True)
class Observer:
    """A model with its tokenizer and a tap.

    batch_size: rows that are read together. length: longest row of passages, 0 = as long as the
    model reads. Raises RetrievalError for a tap or a head that cannot be used.
    """

    model: LanguageModel
    params: Any
    tokenizer: Any
    tap: str = ""
    batch_size: int = 8
    length: int = 0

    def __post_init__(self):
        c = self.model.config
        object.__setattr__(self, "tap", checked_tap(c, self.tap))
        if c.head not in LM_HEADS:
            raise RetrievalError(
                f"a {c.family} model with head={c.head!r} predicts no tokens: expected "
                f"{', '.join(LM_HEADS)}"
            )

    @functools.cached_property
    def identity(self) -> Identity:
        return Identity.of(self.model, self.params, self.tokenizer, self.tap)

    def observe(self, packed: Packed, max_rows: int = 0) -> Iterator[Observed]:
        """Every prediction of the rows, a batch at a time, in order. max_rows 0 = all rows.

        A masked language model predicts each ordinary token with only it masked in its document
        (as `lm.evaluation.pseudo`); others predict what has a weight.
        """
        inputs.check(
            self.model.config, {"tokens": packed.targets, "segments": packed.segments}, None
        )
        order = range(min(max_rows or len(packed), len(packed)))
        for fields, rows, asked in self._batches(packed, order):
            batch = Batch.of(**fields)
            inputs.check(self.model.config, batch)
            vectors, losses = jax.device_get(observed(self.model, self.params, batch, self.tap))
            at, places = np.nonzero(asked)
            yield Observed(
                vectors[at, places],
                fields["targets"][at, places].astype(np.int32),
                losses[at, places],
                rows[at],
                places,
            )

    def _batches(
        self, packed: Packed, order: range
    ) -> Iterator[tuple[dict, np.ndarray, np.ndarray]]:
        """Fields of a batch, the number of each of its rows, and what is predicted, bool [B, T]."""
        turns = (self._whole if self.model.config.causal else self._masked)(packed, order)
        queue: list[tuple[dict[str, np.ndarray], int, np.ndarray]] = []
        for one in turns:
            queue.append(one)
            if len(queue) == self.batch_size:
                yield self._stacked(queue)
                queue = []
        if queue:
            yield self._stacked(queue)

    def _stacked(self, queue) -> tuple[dict, np.ndarray, np.ndarray]:
        """Empty rows fill the batch."""
        fields, rows, asked = zip(*queue, strict=True)

        def stacked(arrays) -> np.ndarray:
            empty = [np.zeros_like(arrays[0])] * (self.batch_size - len(arrays))
            return np.stack([*arrays, *empty])

        named = {name: stacked([row[name] for row in fields]) for name in fields[0]}
        return named, np.array(rows), stacked(asked)

    def _whole(self, packed: Packed, order: range):
        for row in order:
            fields = _fields(packed, row)
            asked = (fields["segments"] > 0) & (fields.pop("weights", np.ones(1)) > 0)
            yield fields, row, asked

    def _masked(self, packed: Packed, order: range):
        mask = pieces.needed(self.tokenizer, "masked", "mask_token")
        special = pieces.special(self.tokenizer, self.model.config.vocab_size)
        for row in order:
            fields = _fields(packed, row)
            text, of = fields["targets"], fields["segments"]
            ordinary = (of > 0) & ~special[text]
            each = [np.flatnonzero(ordinary & (of == n)) for n in np.unique(of[of > 0])]
            for turn in range(max(map(len, each), default=0)):
                places = [found[turn] for found in each if turn < len(found)]
                tokens, asked = text.copy(), np.zeros(len(text), bool)
                tokens[places], asked[places] = mask, True
                yield {"tokens": tokens, "targets": text, "segments": of}, row, asked


def _fields(packed: Packed, row: int) -> dict[str, np.ndarray]:
    own = {name: getattr(packed, name)[row] for name in ("tokens", "targets", "segments")}
    own |= {name: value[row] for name, value in packed.extra.items()}
    return {
        name: np.asarray(value).astype(np.float32 if name == "weights" else np.int32)
        for name, value in own.items()
    }


@functools.partial(jax.jit, static_argnames=("model", "tap"))
def observed(model: Any, params: dict, batch: Batch, tap: str) -> tuple[jax.Array, jax.Array]:
    """The tap, float32 [B, T, D], and -log p of the targets, float32 [B, T]."""
    out, found = tapped(model, params, batch, taps=(tap,))
    logits, head = head_of(model, params)
    chunk = cross_entropy.chunk_length(*batch.tokens.shape, model.config.vocab_size)
    losses = cross_entropy.per_token(logits, head, out.hidden, batch.targets, chunk)
    return found[tap].astype(jnp.float32), losses
