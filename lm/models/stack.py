"""Repetition of layers: scanned, unrolled or separate, with rematerialisation and cache."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.models.block import Block, Context
from lm.models.config import ModelConfig

REMAT_POLICIES = {
    # keep matmul results, recompute the rest
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,  # keep only each layer's input
}


def kinds(c: ModelConfig) -> tuple[str, ...]:
    """Kinds of attention layers of a model, in the order of its views."""
    return tuple(sorted(set(c.layer_kinds) - {"ssm"}))


def differences(c: ModelConfig) -> dict[str, np.ndarray]:
    """Per-layer settings that tell layers of one shape apart (see `Block`); empty if none do.

    Layers that differ only in window and rotary base keep one stacked tree of parameters, and take
    these settings as data.
    """
    found = {}
    if len(kinds(c)) > 1:
        found["view"] = np.asarray(
            [kinds(c).index(kind) if kind != "ssm" else 0 for kind in c.layer_kinds], np.int32
        )
    if c.first_norm_on_stream:
        found["first"] = np.arange(c.n_layers) == 0
    return found


def block_class(c: ModelConfig) -> type[nn.Module]:
    """Return `Block`, rematerialised as the config asks."""
    if c.remat == "none":
        return Block
    return nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=c.layers != "scan")


def shape(c: ModelConfig, i: int) -> dict[str, bool]:
    """Arguments of layer `i`'s `Block`, which say what parts the layer has."""
    return dict(ssm=c.layer_kinds[i] == "ssm", neighbours=i in c.neighbour_layers)


class Period(nn.Module):
    """Consecutive layers of different shapes, which the stack repeats.

    Called like a `Block`, with one entry per layer.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x, cache, layer, context):
        new = {}
        for i in range(self.config.period):
            name, own = f"block_{i}", {key: each[i] for key, each in layer.items()}
            layer_i = block_class(self.config)(self.config, **shape(self.config, i), name=name)
            x, new[name] = layer_i(x, None if cache is None else cache[name], own, context)
        return x, None if cache is None else new


def layers(c: ModelConfig, initialising: bool = False) -> nn.Module | list[nn.Module]:
    """Build the blocks of a model.

    Returns one scanned module with parameters stacked on a leading axis, or a list ("separate").
    """
    if c.layers == "separate":
        return [block_class(c)(c, **shape(c, i)) for i in range(c.n_layers)]
    repeated, parts = (block_class(c), shape(c, 0)) if c.period == 1 else (Period, {})
    times = c.n_layers // c.period
    scanned = nn.scan(
        repeated,
        length=times,
        unroll=times if c.layers == "unrolled" else 1,
        in_axes=(0, 0, nn.broadcast),
        variable_axes={"taps": 0} if c.shared_layers else {"params": 0, "taps": 0},
        variable_broadcast="params" if c.shared_layers else False,
        split_rngs={"params": not c.shared_layers, "dropout": True},
        metadata_params={nn.PARTITION_NAME: "layers"},
        # The check traces the body a second time. Only initialisation needs what it finds: the
        # parameters that layers share. It also decides which masks dropout draws from a seed.
        check_constancy_invariants=initialising or c.dropout > 0,
    )
    return scanned(c, **parts)


def run(c: ModelConfig, blocks, x, cache, context: Context, views):
    """Apply the blocks in turn.

    `cache` is None, a stacked tree, or a list with one entry per layer, as `blocks` is. `views` has
    one entry for each of `kinds(c)`.
    """
    own = differences(c)
    if not isinstance(blocks, (list, tuple)):
        if "view" in own:
            views = [view._replace(mask=view.mask.with_window_as_data()) for view in views]
            context = dataclasses.replace(
                context, view=jax.tree.map(lambda *each: jnp.stack(each), *views)
            )
        else:
            context = dataclasses.replace(context, view=views[0] if views else None)
        if c.period > 1:
            own = {name: each.reshape(-1, c.period) for name, each in own.items()}
        return blocks(x, cache, own, context)
    new = []
    for i, layer in enumerate(blocks):
        kind = c.layer_kinds[i]
        mine = dataclasses.replace(
            context, view=None if kind == "ssm" else views[kinds(c).index(kind)]
        )
        first = {"first": own["first"][i]} if "first" in own else {}
        x, memory = layer(x, None if cache is None else cache[i], first, mine)
        new.append(memory)
    return x, None if cache is None else new
