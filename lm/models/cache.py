"""Decoding cache: keys and values, state-space states and segment ids."""

import jax
import jax.numpy as jnp

from lm.models.config import ModelConfig


def slots(c: ModelConfig, kind: str, length: int) -> int:
    """Number of keys that a layer caches of `length`.

    A local layer keeps at most its window, as a ring buffer of the latest keys. Layers stacked on
    one axis need one size, so a stack that alternates local and global layers keeps all keys.
    """
    alone = c.layers == "separate" or set(c.layer_kinds) <= {kind, "ssm"}
    return min(c.sliding_window, length) if kind == "local" and alone else length


def ring_indices(last, ring: int) -> jax.Array:
    """Sequence index held by each slot of a ring buffer, int32 [ring].

    `last` is the index written last. An entry is negative where nothing was written.
    """
    return last - (last - jnp.arange(ring)) % ring


def init_cache(c: ModelConfig, batch_size: int, length: int, encoder_length: int = 0) -> dict:
    """Return an empty cache for rows of `length` tokens.

    All arrays are zeros in the compute dtype, except states, which are float32.

    * `layers`: per layer a dict of arrays [B, ...]; a list when `config.layers` is "separate", else
      stacked like the parameters. Attention has `key` and `value` [B, n_kv_heads, slots, head_dim],
      and in an encoder-decoder `cross_key` and `cross_value` [B, n_kv_heads, encoder_length, ...],
      so that no product has to transpose them. A state-space layer has `state`, `conv`, ...
    * `segments`: int32 [B, length].
    * `length`: int32, the number of tokens read. Single tokens are written at this index modulo
      the slots, so that a cache may be continued as a ring: the latest tokens are kept.
    * `encoder_segments`: int32 [B, encoder_length], in an encoder-decoder only: the segments that
      read the encoder's tokens.
    """
    block = lambda i: _layer(c, c.layer_kinds[i], batch_size, length, encoder_length)
    stacked = lambda i: jax.tree.map(
        lambda x: jnp.broadcast_to(x, (c.n_layers // c.period, *x.shape)), block(i)
    )
    if c.layers == "separate":
        layers = [block(i) for i in range(c.n_layers)]
    else:
        layers = (
            stacked(0) if c.period == 1 else {f"block_{i}": stacked(i) for i in range(c.period)}
        )
    cache = {
        "layers": layers,
        "segments": jnp.zeros((batch_size, length), jnp.int32),
        "length": jnp.int32(0),
    }
    return cache | (
        {"encoder_segments": jnp.zeros((batch_size, encoder_length), jnp.int32)}
        if c.encoder_layers
        else {}
    )


def _layer(c: ModelConfig, kind: str, batch_size: int, length: int, encoder_length: int) -> dict:
    if kind == "ssm":
        window = lambda channels: jnp.zeros((batch_size, c.ssm_conv - 1, channels), c.dtype)
        cache = {"conv": window(c.ssm_inner), "segment": jnp.zeros((batch_size,), jnp.int32)}
        if c.ssm_heads:
            return cache | {
                "bc_conv": window(2 * c.ssm_groups * c.ssm_state),
                "state": jnp.zeros(
                    (batch_size, c.ssm_heads, c.ssm_head_dim, c.ssm_state), jnp.float32
                ),
            }
        return cache | {"state": jnp.zeros((batch_size, c.ssm_state, c.ssm_inner), jnp.float32)}
    keys = lambda n: jnp.zeros((batch_size, c.n_kv_heads, n, c.head_dim), c.dtype)
    size = slots(c, kind, length)
    cache = {"key": keys(size), "value": keys(size)}
    return cache | (
        {"cross_key": keys(encoder_length), "cross_value": keys(encoder_length)}
        if c.encoder_layers
        else {}
    )


def put_rows(c: ModelConfig, cache: dict, new: dict, rows) -> dict:
    """Replace rows of a cache by rows whose prompts were just read.

    cache: written as a ring, one token per row at a time, from index `length` on, which is at
    least its number of slots at the start (see `init_cache`). new: a cache of R rows that holds
    exactly their prompts, padded on the left. They end at the index before `length`. rows: int32
    [R], the rows to replace; those beyond the cache are dropped.
    """
    read = new["segments"].shape[1]

    # the place in the prompt of every slot of a ring; negative where there is none
    def places(ring: int) -> jax.Array:
        return ring_indices(cache["length"] - 1, ring) - (cache["length"] - read)

    def moved(path, old, own):
        name = path[-1].key
        if name in ("key", "value"):
            at = places(old.shape[2])
            own = own[:, :, at % own.shape[2]]
            own = jnp.where((at >= 0)[:, None], own, jnp.zeros((), own.dtype))
        elif name.startswith("cross_"):
            own = jnp.pad(own, ((0, 0), (0, 0), (0, old.shape[2] - own.shape[2]), (0, 0)))
        return old.at[rows].set(own, mode="drop")

    def of_layers(path, old, own):
        one = lambda old, own: moved(path, old, own)
        return one(old, own) if c.layers == "separate" else jax.vmap(one)(old, own)

    at = places(cache["segments"].shape[1])
    segments = jnp.where(at >= 0, new["segments"][:, jnp.maximum(at, 0)], 0)
    put = {"segments": cache["segments"].at[rows].set(segments, mode="drop")}
    if "encoder_segments" in cache:
        old, own = cache["encoder_segments"], new["encoder_segments"]
        own = jnp.pad(own, ((0, 0), (0, old.shape[1] - own.shape[1])))
        put["encoder_segments"] = old.at[rows].set(own, mode="drop")
    layers = jax.tree_util.tree_map_with_path(of_layers, cache["layers"], new["layers"])
    return {**cache, **put, "layers": layers}
