"""Taps: hidden states of a forward pass that hooks and token datastores see."""

from typing import Any

import jax

from lm.batch import Batch, Output
from lm.models.config import ModelConfig
from lm.models.model import LanguageModel

# hidden: the final hidden states, after the last norm.
# ffn_input: input of the last layer's feed-forward, after its norm (kNN-LM's key).
TAPS = ("hidden", "ffn_input")


def tapped(
    model: LanguageModel,
    params: dict,
    batch: Batch,
    cache: dict | None = None,
    taps: tuple[str, ...] = (),
) -> tuple[Output, dict[str, jax.Array]]:
    """Compute the final hidden states of a batch, and its taps, {name: [B, T, D]}."""
    sown: dict = {}
    if "ffn_input" in taps:
        out, sown = _hidden(model, params, batch, cache, mutable=["taps"])
    else:
        out = _hidden(model, params, batch, cache)
    found = {"hidden": out.hidden} if "hidden" in taps else {}
    if sown:
        found["ffn_input"] = _ffn_input(model.config, sown["taps"])
    return out, found


def _hidden(model, params, batch, cache, **options) -> Any:
    return model.apply({"params": params}, batch, cache, method="hidden", **options)


def _ffn_input(c: ModelConfig, sown: dict) -> jax.Array:
    """The tap [B, T, D] of the last layer, from what `Block` sowed."""
    if c.layers == "separate":
        return sown[f"layers_{c.n_layers - 1}"]["ffn_input"]
    stacked = sown["layers"] if c.period == 1 else sown["layers"][f"block_{c.period - 1}"]
    return stacked["ffn_input"][-1]
