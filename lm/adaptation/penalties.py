"""Penalties for leaving a base model, as wrappers of any loss: L2-SP, EWC and KL.

A wrapped loss is called with fixed={"base": base params, "fisher": see `fisher`}. Penalties on
the weights are added once to the mean loss, whatever the batch; the divergence is a mean over the
same weights as the loss. No gradient flows to the base.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from lm.batch import Batch
from lm.distributed.rules import by_path
from lm.losses import Loss, Term, cross_entropy, divergence
from lm.losses.tokens import head_of


def l2_sp(params: dict, base: dict, only: Collection[str] | None = None) -> jax.Array:
    """Compute 1/2 sum (w - w0)^2, float32 (Li et al. 2018, equation 3).

    only: paths of the weights that can differ; None = all.
    """
    return 0.5 * jnp.sum(
        jnp.stack([jnp.sum(jnp.square(d)) for d in _differences(params, base, only).values()])
    )


def ewc(params: dict, base: dict, fisher: dict, only: Collection[str] | None = None) -> jax.Array:
    """Compute 1/2 sum F (w - w0)^2, float32 (Kirkpatrick et al. 2017, equation 3).

    F is the diagonal of the Fisher information at the base.
    """
    information = by_path(fisher)
    terms = [
        jnp.sum(information[name] * jnp.square(d))
        for name, d in _differences(params, base, only).items()
    ]
    return 0.5 * jnp.sum(jnp.stack(terms))


def penalised(
    loss_function: Callable[..., Loss],
    *,
    l2_sp_strength: float = 0.0,
    ewc_strength: float = 0.0,
    kl_strength: float = 0.0,
    direction: str = "forward",
    only: Collection[str] | None = None,
) -> Callable[..., Loss]:
    """Wrap a loss with penalties: (model, params, batch, rng, *, fixed, **options) -> Loss.

    They are added to the first term. With all strengths 0 the loss function itself is returned.
    Metrics: `task`, the loss without
    penalties; `l2_sp` and `ewc`, as added to the loss; `kl`, in nats per token before scaling.
    """
    if not (l2_sp_strength or ewc_strength or kl_strength):
        return loss_function

    def loss(
        model, params: dict, batch: Batch, rng: jax.Array | None = None, *, fixed: dict, **options
    ) -> Loss:
        listening: Any = _Listening(model)
        found = loss_function(listening, params, batch, rng, **options)
        base = jax.lax.stop_gradient(fixed["base"])
        first = found.first
        metrics, added = {"task": first.sum}, jnp.float32(0)
        if l2_sp_strength:
            metrics["l2_sp"] = first.weight * (l2_sp_strength * l2_sp(params, base, only))
            added += metrics["l2_sp"]
        if ewc_strength:
            metrics["ewc"] = first.weight * (
                ewc_strength * ewc(params, base, fixed["fisher"], only)
            )
            added += metrics["ewc"]
        if kl_strength:
            hidden = listening.hidden
            if hidden is None:  # the loss function did not use hidden states
                rngs = None if rng is None else {"dropout": rng}
                hidden = model.apply({"params": params}, batch, method="hidden", rngs=rngs).hidden
            metrics["kl"] = summed_divergence(
                model, params, base, batch, hidden, direction, options.get("chunk", 0)
            )
            added += kl_strength * metrics["kl"]
        name = next(iter(found.terms))
        terms = {**found.terms, name: Term(first.sum + added, first.weight)}
        if len(terms) > 1:  # other metrics are over weights of their own
            metrics = {name: Term(value, first.weight) for name, value in metrics.items()}
        return Loss(terms, {**found.metrics, **metrics})

    return loss


def summed_divergence(
    model, params: dict, base: dict, batch: Batch, hidden: jax.Array, direction: str, chunk: int = 0
) -> jax.Array:
    """Weighted divergence of the predictions from the base's, summed over [B, T], float32.

    hidden [B, T, D] are the trained model's. Both models' logits exist for one chunk at a time. The
    base runs without dropout.
    """
    theirs = model.apply({"params": base}, batch, method="hidden").hidden
    (logits, head), (_, base_head) = head_of(model, params), head_of(model, base)
    chunk = chunk or cross_entropy.chunk_length(
        2 * batch.tokens.shape[0], batch.tokens.shape[1], model.config.vocab_size
    )

    return divergence.summed(
        logits, head, hidden, logits, base_head, theirs, batch.weights, chunk, direction
    )


class _Listening:
    """Model wrapper that keeps its last hidden states, so that a penalty can reuse them."""

    def __init__(self, model):
        self._model, self.hidden = model, None

    def apply(self, variables, *args, **options):
        out = self._model.apply(variables, *args, **options)
        if options.get("method") == "hidden":
            self.hidden = out.hidden
        return out

    def __getattr__(self, name):
        return getattr(self._model, name)


def _differences(params: dict, base: dict, only: Collection[str] | None) -> dict[str, jax.Array]:
    now, then = by_path(params), by_path(base)
    return {
        name: now[name].astype(jnp.float32) - then[name].astype(jnp.float32)
        for name in (now if only is None else only)
    }
