"""The only place that knows how layers repeat: scanned, unrolled, or separate; rematerialised or not; cache threaded through."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.models.block import Block
from lm.models.config import ModelConfig

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matmul results, recompute the rest
    "full": None,  # keep only each layer's input
}


def kinds(c: ModelConfig) -> tuple[str, ...]:
    """The kinds of layers that a model has, in the order of the views they are given: one, unless they differ."""
    return tuple(sorted(set(c.layer_pattern))) or ("local" if c.sliding_window else "global",)


def differences(c: ModelConfig) -> dict[str, np.ndarray]:
    """What tells one layer from another, an entry a layer; empty when nothing does. See `Block`.

    Layers that differ in their window and rotary base alone keep one stacked tree of parameters, and take these as data.
    """
    found = {}
    if len(kinds(c)) > 1:
        found["view"] = np.asarray([kinds(c).index(c.layer_pattern[i % len(c.layer_pattern)]) for i in range(c.n_layers)], np.int32)
    if c.first_norm_on_stream:
        found["first"] = np.arange(c.n_layers) == 0
    return found


def layers(c: ModelConfig) -> nn.Module | list[nn.Module]:
    """The blocks of a model: one scanned module with parameters stacked on a leading axis, or a list ("separate")."""
    block = Block
    if c.remat != "none":
        block = nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=c.layers != "scan")
    if c.layers == "separate":
        return [block(c) for _ in range(c.n_layers)]
    scanned = nn.scan(
        block, length=c.n_layers, unroll=c.n_layers if c.layers == "unrolled" else 1,
        in_axes=(0, 0, nn.broadcast, nn.broadcast),
        variable_axes={} if c.shared_layers else {"params": 0}, variable_broadcast="params" if c.shared_layers else False,
        split_rngs={"params": not c.shared_layers, "dropout": True}, metadata_params={nn.PARTITION_NAME: "layers"},
    )  # fmt: skip
    return scanned(c)


def run(c: ModelConfig, blocks, x, cache, views, start):
    """Applies the blocks in turn; `cache` is None, one stacked tree, or a list with an entry a layer, as `blocks` is.

    views: (mask, angles) for each of `kinds(c)`.
    """
    own = differences(c)
    view = jax.tree.map(lambda *each: jnp.stack(each), *views) if "view" in own else views[0]
    if not isinstance(blocks, (list, tuple)):
        return blocks(x, cache, own, view, start)
    new = []
    for i, block in enumerate(blocks):
        x, layer = block(x, None if cache is None else cache[i], {name: each[i] for name, each in own.items()}, view, start)
        new.append(layer)
    return x, None if cache is None else new
