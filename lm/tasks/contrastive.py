"""Contrastive learning of sentence embeddings: find a text's partner in the whole batch.

InfoNCE (van den Oord et al. 2018, section 2.3) with in-batch negatives (Henderson et al. 2017,
section 4.4); the score is the cosine over a temperature. With hard negatives, and with a text as
its own positive under another dropout mask, it is SimCSE (Gao et al. 2021, equations 1 and 5).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch
from lm.data.encode import labels as label_rows
from lm.data.encode.labels import Shape
from lm.data.records import labels as labelled
from lm.losses import Loss
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.labels import RowTask
from lm.tasks.task import Shown

POOLINGS = ("", "mean", "first", "last")


@dataclasses.dataclass(frozen=True)
class Contrastive(RowTask):
    """Find the partner of a text among those of the whole batch."""

    field: str = "text"  # field of the text
    pair_field: str = ""  # field of its positive; "" = the text itself, under another dropout mask
    negatives_field: str = ""  # field with a negative text or a list of them
    negatives: int = 0  # number of a record's negatives that are read
    temperature: float = 0.05  # cosines are divided by it
    symmetric: bool = False  # average with the loss of finding the text given its positive
    pooling: str = ""  # mean, first, last; "" = the model's, or its default

    head: ClassVar[str] = "embedding"
    heads: ClassVar[tuple[str, ...]] = (head,)
    new_parameters: ClassVar[str] = ""
    joint: ClassVar[bool] = True
    encoding: ClassVar[Callable] = staticmethod(label_rows.groups)

    @property
    def texts(self) -> int:
        return 2 + self.negatives

    def check(self, config) -> None:
        super().check(config)
        if not 0 < self.temperature < math.inf:
            raise ConfigError(
                f"task.temperature={self.temperature}: expected a number above 0, such as 0.05"
            )
        if self.negatives < 0 or bool(self.negatives) != bool(self.negatives_field):
            raise ConfigError(
                f"task.negatives={self.negatives} and "
                f"task.negatives_field={self.negatives_field!r}: "
                "set how many of a record's negatives are read and the field that holds them, or "
                "neither"
            )
        if self.pooling not in POOLINGS:
            raise ConfigError(
                f"task.pooling={self.pooling!r}: expected mean, first or last, or '' "
                "for the model's"
            )
        if config.length % self.texts:
            raise ConfigError(
                f"length={config.length} does not divide by the {self.texts} texts of a record; "
                f"make it a multiple of {self.texts}"
            )
        if not self.pair_field and not config.model.dropout:
            raise ConfigError(
                "task.pair_field='' pairs a text with itself, told apart by dropout alone, and "
                "model.dropout=0: "
                "name the field of the positives, or set model.dropout=0.1"
            )
        if config.batch_size == 1 and not self.negatives:
            raise ConfigError(
                "batch_size=1: a pair has the others of its batch as negatives, and there is "
                "none; raise it"
            )

    def record(self, row, where: str) -> labelled.Group:
        return labelled.group(
            row, where, self.field, self.pair_field, self.negatives_field, self.negatives
        )

    def shape(self, length: int, model: ModelConfig) -> Shape:
        """Texts are framed as retrieval.Encoder does: by the tokenizer's own special tokens."""
        return Shape(length, framed=False, texts=self.texts)

    def head_fields(self, config, sources, model: ModelConfig) -> dict:
        return {"pooling": self.pooling} if self.pooling else {}

    def longest(self, length: int) -> int:
        """Most tokens of a text: the texts of a row have equal shares of its length."""
        return length // self.texts

    def loss(
        self, model, params: dict, batch: Batch, rng: jax.Array | None = None, parts: int = 1
    ) -> Loss:
        """Cross-entropy of each row's positive among all positives and negatives, summed.

        batch: [B, T] over all devices. Row i holds 2 + `negatives` texts of T / (2 + `negatives`)
        places each, padded: the text, its positive, its negatives. Rows without tokens are
        skipped. A candidate that would also be right is no negative: a text equal to the row's
        text or to its positive, and the positive of another row with the same text.

        parts: number of parts in which the texts go through the model; their activations are
        recomputed in the backward pass, and the loss is unchanged (GradCache, Gao et al. 2021b).
        Dropout is on when `rng` is given, with another mask for every text.

        Metrics: accuracy, the rows whose own positive has the highest score.
        """
        texts = self.texts
        vectors = _embedded(model, params, batch, rng, texts, parts)
        # [B, C, T / C]
        tokens = jnp.where(batch.segments > 0, batch.tokens, -1).reshape(*vectors.shape[:2], -1)
        real = (batch.segments > 0).any(axis=1)
        # [B, D] and [B (C - 1), D], positives first
        asked, others = (vectors[:, 0], jnp.concatenate([vectors[:, i] for i in range(1, texts)]))
        of_others = jnp.concatenate([tokens[:, i] for i in range(1, texts)])
        same = lambda a, b: (a[:, None] == b[None]).all(-1)
        right = same(tokens[:, 0], of_others) | same(tokens[:, 1], of_others)
        rows = len(asked)
        right = right.at[:, :rows].set(right[:, :rows] | same(tokens[:, 0], tokens[:, 0]))
        scores = (
            jnp.einsum("id,jd->ij", asked, others, precision=jax.lax.Precision.HIGHEST)
            / self.temperature
        )
        loss, hits = _of_own(scores, right | ~jnp.tile(real, texts - 1))
        if self.symmetric:
            loss = (loss + _of_own(scores[:, :rows].T, right[:, :rows].T | ~real)[0]) / 2
        count = real.astype(jnp.float32)
        total, hits = jnp.sum(count * loss), jnp.sum(count * hits)
        return Loss.of(total, jnp.sum(count), accuracy=hits)

    def shown(self, row, spelled, names) -> Shown:
        segments, tokens = np.asarray(row["segments"]), np.asarray(row["tokens"])
        texts = [spelled(tokens[segments == i]) for i in range(1, int(segments.max()) + 1)]
        others = " and not " * (len(texts) > 2) + ", ".join(map(repr, texts[2:]))
        said = f"find {texts[1]!r} given {texts[0]!r}{others}"
        return Shown((segments == 2).tolist(), {}, (), said)


def _of_own(scores: jax.Array, out: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of column i in row i, and whether it scores highest, both [B].

    scores: [B, N], of which the columns marked in `out` are excluded.
    """
    own = jnp.arange(len(scores))[:, None] == jnp.arange(scores.shape[1])
    scores = jnp.where(out & ~own, -jnp.inf, scores)
    return jax.nn.logsumexp(scores, axis=-1) - jnp.diagonal(scores), scores.argmax(
        -1
    ) == jnp.arange(len(scores))


def _embedded(model, params, batch: Batch, rng, texts: int, parts: int) -> jax.Array:
    """Unit vectors of all texts, float32 [B, C, D]."""
    rows = (batch.tokens, batch.segments, batch.positions)

    def embed(rows, rng):
        tokens, segments, positions = (x.reshape(len(x) * texts, -1) for x in rows)
        one = Batch(
            tokens=tokens,
            targets=tokens,
            weights=jnp.zeros(tokens.shape),
            segments=(segments > 0).astype(jnp.int32),
            positions=positions,
        )
        pooled = model.apply(
            {"params": params}, one, rngs=None if rng is None else {"dropout": rng}
        ).pooled
        vectors = pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        return vectors.reshape(-1, texts, vectors.shape[-1])

    if parts == 1:
        return embed(rows, rng)
    # Part i is rows i, i + k, ..., as in accumulation, so each device splits its own rows.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), rows)
    rngs = None if rng is None else jax.random.split(rng, parts)
    vectors = jax.lax.map(jax.checkpoint(lambda xs: embed(*xs)), (split, rngs))
    return vectors.swapaxes(0, 1).reshape(-1, *vectors.shape[2:])
