"""Contrastive learning of sentence embeddings: find a text's partner in the whole batch.

InfoNCE (van den Oord et al. 2018, section 2.3) with in-batch negatives (Henderson et al. 2017,
section 4.4); the score is the cosine over a temperature. With hard negatives, and with a text as
its own positive under another dropout mask, it is SimCSE (Gao et al. 2021, equations 1 and 5).
"""

import jax
import jax.numpy as jnp

from lm.batch import Batch
from lm.objectives.loss import Loss

OPTIONS = ("temperature", "negatives", "symmetric")  # config options passed to the loss


def longest(length: int, *, negatives: int, **_) -> int:
    """Maximal tokens per text: a row's texts have equal shares of its length."""
    return length // (2 + negatives)


def contrastive(
    model,
    params: dict,
    batch: Batch,
    rng: jax.Array | None = None,
    *,
    chunk: int = 0,
    temperature: float = 0.05,
    negatives: int = 0,
    symmetric: bool = False,
    parts: int = 1,
) -> Loss:
    """Cross-entropy of each row's positive among the positives and negatives of the batch, summed.

    batch: [B, T] over all devices. Row i holds 2 + `negatives` texts of T / (2 + `negatives`)
    places each, padded: the text, its positive, its negatives. Rows without tokens are skipped. A
    candidate that would also be right is no negative: a text equal to the row's text or to its
    positive, and the positive of another row with the same text.

    symmetric: average with the loss of finding the text given its positive. parts: number of parts
    in which the texts go through the model; their activations are recomputed in the backward pass,
    and the loss is unchanged (GradCache, Gao et al. 2021b). Dropout is on when `rng` is given, with
    another mask for every text.

    Metrics: accuracy, the rows whose own positive has the highest score.
    """
    texts = 2 + negatives
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
        jnp.einsum("id,jd->ij", asked, others, precision=jax.lax.Precision.HIGHEST) / temperature
    )
    loss, hits = _of_own(scores, right | ~jnp.tile(real, texts - 1))
    if symmetric:
        loss = (loss + _of_own(scores[:, :rows].T, right[:, :rows].T | ~real)[0]) / 2
    count = real.astype(jnp.float32)
    return Loss(
        sum=jnp.sum(count * loss),
        weight=jnp.sum(count),
        metrics={"accuracy": jnp.sum(count * hits)},
    )


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
