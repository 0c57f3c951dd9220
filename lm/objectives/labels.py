"""Losses of label heads: of a whole text, of every token, and of an answer's span.

Sequence and span losses are BERT's (Devlin et al. 2019, sections 4.1 and 4.2), token labels those
of its section 5.3.
"""

import jax
import jax.numpy as jnp

from lm.batch import Batch
from lm.objectives.loss import Loss


def classification(
    model, params: dict, batch: Batch, rng: jax.Array | None = None, *, chunk: int = 0
) -> Loss:
    """Cross-entropy of the class `batch.labels` [B, 1], summed over rows with a text.

    With a single label it is the squared error. Dropout is on when `rng` is given; `chunk` is
    unused. Metrics: accuracy, for classes.
    """
    logits = _logits(model, params, batch, rng)
    real = _real(batch)
    if model.config.n_labels == 1:
        return Loss(
            sum=jnp.sum(real * jnp.square(logits[:, 0] - _labels(batch)[:, 0])),
            weight=jnp.sum(real),
            metrics={},
        )
    wanted = _labels(batch)[:, 0].astype(jnp.int32)
    hits = real * (logits.argmax(-1) == wanted)
    return Loss(
        sum=jnp.sum(real * _cross_entropy(logits, wanted)),
        weight=jnp.sum(real),
        metrics={"accuracy": jnp.sum(hits)},
    )


def token_classification(
    model, params: dict, batch: Batch, rng: jax.Array | None = None, *, chunk: int = 0
) -> Loss:
    """Weighted cross-entropy of the classes `batch.targets` [B, T], summed.

    Metrics: accuracy, with the same weights.
    """
    logits = _logits(model, params, batch, rng)
    hits = batch.weights * (logits.argmax(-1) == batch.targets)
    total = jnp.sum(batch.weights * _cross_entropy(logits, batch.targets))
    return Loss(sum=total, weight=jnp.sum(batch.weights), metrics={"accuracy": jnp.sum(hits)})


def question_answering(
    model, params: dict, batch: Batch, rng: jax.Array | None = None, *, chunk: int = 0
) -> Loss:
    """Mean cross-entropy of an answer's first and last token, summed over rows.

    `batch.labels` [B, 2] are their indices. Each is a choice among the row's tokens without
    padding. Metrics: exact, rows with both right.
    """
    logits = _logits(model, params, batch, rng)
    logits = jnp.where((batch.segments > 0)[..., None], logits, -1e9)
    wanted, real = _labels(batch).astype(jnp.int32), _real(batch)
    both = _cross_entropy(logits[..., 0], wanted[:, 0]) + _cross_entropy(
        logits[..., 1], wanted[:, 1]
    )
    hits = real * (logits.argmax(1) == wanted).all(-1)
    return Loss(
        sum=jnp.sum(real * both) / 2, weight=jnp.sum(real), metrics={"exact": jnp.sum(hits)}
    )


def _logits(model, params: dict, batch: Batch, rng) -> jax.Array:
    rngs = None if rng is None else {"dropout": rng}
    return model.apply({"params": params}, batch, rngs=rngs).logits.astype(jnp.float32)


def _labels(batch: Batch) -> jax.Array:
    if batch.labels is None:
        raise ValueError(
            "the batch has no labels: give them to Batch, float32 [B, 1] of a class, [B, "
            "2] of a span"
        )
    return batch.labels


def _real(batch: Batch) -> jax.Array:
    """1 for every row with a token, float32 [B]; an evaluation's last batch has empty rows."""
    return (batch.segments > 0).any(axis=1).astype(jnp.float32)


def _cross_entropy(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """Compute -log p(wanted), [...], from logits [..., N]."""
    chosen = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
