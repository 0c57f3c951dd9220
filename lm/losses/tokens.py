"""Cross-entropy of a model's predictions of `batch.targets` (Radford et al. 2018, equation 1)."""

import jax
import jax.numpy as jnp

from lm.batch import Batch
from lm.losses import cross_entropy
from lm.losses.loss import Loss
from lm.models import tied


def token_loss(
    model,
    params: dict,
    batch: Batch,
    rng: jax.Array | None = None,
    *,
    chunk: int = 0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    sparse: bool = False,
) -> Loss:
    """Weighted cross-entropy of `batch.targets` [B, T], summed.

    Dropout is on when `rng` is given. chunk: positions whose logits exist at one time; 0 = as many
    as fit a fixed amount of memory. label_smoothing, z_loss: see `cross_entropy.Extra`; with
    either, the metrics have the plain `cross_entropy`. sparse: see `cross_entropy.summed`.
    """
    rngs = None if rng is None else {"dropout": rng}
    hidden = model.apply({"params": params}, batch, method="hidden", rngs=rngs).hidden
    logits, head = head_of(model, params)
    chunk = chunk or cross_entropy.chunk_length(*batch.tokens.shape, model.config.vocab_size)
    extra = cross_entropy.Extra(label_smoothing, z_loss)
    total, plain = cross_entropy.summed(
        logits, head, hidden, batch.targets, batch.weights, chunk, extra, sparse
    )
    metrics = {"cross_entropy": plain} if extra else {}
    return Loss.of(total, jnp.sum(batch.weights), **metrics)


def token_losses(model, params: dict, batch: Batch, *, chunk: int = 0) -> jax.Array:
    """Cross-entropy of every position in nats, float32 [B, T], whatever its weight; no dropout."""
    hidden = model.apply({"params": params}, batch, method="hidden").hidden
    logits, head = head_of(model, params)
    chunk = chunk or cross_entropy.chunk_length(*batch.tokens.shape, model.config.vocab_size)
    return cross_entropy.per_token(logits, head, hidden, batch.targets, chunk)


def head_of(model, params: dict):
    """Return the logits function and its parameters.

    These are the output layer's and, if it is tied, the embeddings'.
    """

    def logits(head, hidden):
        return model.apply({"params": tied.whole(head)}, hidden, method="logits")

    names = ["embeddings"] if model.config.tie_embeddings else []
    head = {name: params[name] for name in (*names, "head") if name in params}
    return logits, jax.tree.map(lambda x: tied.copies(x) or x, head)
