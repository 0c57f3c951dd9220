"""The only place that knows how layers repeat: scanned, unrolled, or separate; rematerialised or not; cache threaded through."""

import flax.linen as nn
import jax

from lm.models.block import Block
from lm.models.config import ModelConfig

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matmul results, recompute the rest
    "full": None,  # keep only each layer's input
}


def layers(c: ModelConfig) -> nn.Module | list[nn.Module]:
    """The blocks of a model: one scanned module with parameters stacked on a leading axis, or a list ("separate")."""
    block = Block
    if c.remat != "none":
        block = nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=c.layers != "scan")
    if c.layers == "separate":
        return [block(c) for _ in range(c.n_layers)]
    scanned = nn.scan(
        block, length=c.n_layers, unroll=c.n_layers if c.layers == "unrolled" else 1,
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast), variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True}, metadata_params={nn.PARTITION_NAME: "layers"},
    )  # fmt: skip
    return scanned(c)


def run(blocks, x, cache, mask, angles, start):
    """Applies the blocks in turn; `cache` is None, one stacked tree, or a list with an entry a layer, as `blocks` is."""
    if not isinstance(blocks, (list, tuple)):
        return blocks(x, cache, mask, angles, start)
    new = []
    for i, block in enumerate(blocks):
        x, layer = block(x, None if cache is None else cache[i], mask, angles, start)
        new.append(layer)
    return x, None if cache is None else new
