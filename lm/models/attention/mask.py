"""What may attend to what, as data: segments, indices, causality and a window; never [T, S]."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.models.cache import ring_indices, slots
from lm.models.config import ModelConfig
from lm.models.positions import rotary_angles


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which of S keys each of T queries sees. All rows share the indices.

    A query sees the keys of its own segment. So `k_segments` says which query segment owns a key:
    a key of another sequence (an encoder's, a passage's) has the number of the segment that reads
    it, and a key with a number that no query has, such as -1, is never seen.

    causal: only keys whose index is not greater than the query's are seen. prefix: keys that are
    seen by earlier queries too. window: only keys at a distance below it are seen; 0 = all. It is
    static, or an array where it differs between layers of one compiled loop. own: queries and keys
    are of the same row, with the same segments and the indices 0, 1, ...; kernels that compute a
    causal mask or a window by themselves need this.
    """

    q_segments: jax.Array  # int32 [B, T]
    k_segments: jax.Array  # int32 [B, S]
    q_index: jax.Array  # int32 [T]
    k_index: jax.Array  # int32 [S]
    prefix: jax.Array | None = None  # bool [B, S]
    causal: bool = False
    window: int | jax.Array = 0
    own: bool = False

    def tree_flatten(self):
        static = isinstance(self.window, int)
        arrays = (self.q_segments, self.k_segments, self.q_index, self.k_index, self.prefix)
        return (*arrays, None if static else self.window), (
            self.causal,
            self.window if static else None,
            self.own,
        )

    @classmethod
    def tree_unflatten(cls, static, children):
        causal, window, own = static
        return cls(*children[:5], causal, children[5] if window is None else window, own)

    @classmethod
    def between(cls, q_segments, k_segments) -> "Mask":
        """Mask by segments alone, for the keys of another sequence."""
        return cls(
            q_segments,
            k_segments,
            jnp.arange(q_segments.shape[1]),
            jnp.arange(k_segments.shape[1]),
        )

    def with_window_as_data(self) -> "Mask":
        """The mask with its window as an array, to stack masks of several windows."""
        return dataclasses.replace(self, window=jnp.asarray(self.window, jnp.int32))

    def block(self, q_start, t: int, k_start, s: int) -> "Mask":
        """The mask of `t` queries and `s` keys that begin there. The starts may be traced."""
        q = lambda x: jax.lax.dynamic_slice_in_dim(x, q_start, t, axis=-1)
        k = lambda x: jax.lax.dynamic_slice_in_dim(x, k_start, s, axis=-1)
        return dataclasses.replace(
            self,
            q_segments=q(self.q_segments),
            k_segments=k(self.k_segments),
            q_index=q(self.q_index),
            k_index=k(self.k_index),
            prefix=None if self.prefix is None else k(self.prefix),
            own=False,
        )

    @property
    def has_window(self) -> bool:
        return not isinstance(self.window, int) or self.window > 0

    def within(self, distance: jax.Array) -> jax.Array:
        """Whether the window admits these distances, bool of the same shape."""
        near = distance < self.window
        return near if isinstance(self.window, int) else near | (self.window == 0)

    def visible(self) -> jax.Array:
        """Which keys are seen, bool [B, 1, T, S]. For `dense.py`, and for blocks of a mask."""
        seen = self.q_segments[:, None, :, None] == self.k_segments[:, None, None, :]
        ahead = self.k_index[None, :] - self.q_index[:, None]
        if self.causal:
            before = ahead <= 0
            seen &= before if self.prefix is None else before | self.prefix[:, None, None, :]
        return seen & self.within(jnp.abs(ahead)) if self.has_window else seen


class View(NamedTuple):
    """Mask and rotary angles that all attention layers of one kind share.

    angles: from `rotary_angles`, or None.
    """

    mask: Mask
    angles: tuple[jax.Array, jax.Array] | None


def see(c: ModelConfig, kind: str, segments_BT, positions_BT, cache=None) -> View:
    """Build the View of the "global" or "local" layers.

    `cache` is the model's cache, whose segments already include this batch, or None.

    A token attends to tokens of its own document (equal segment ids; padding, id 0, attends to
    padding). A causal model excludes later tokens. A local layer excludes tokens at a distance of
    `sliding_window` or more. Without a cache the keys are the row's own tokens. With one they are
    all cache slots in order, or a ring buffer of the latest ones. If the batch has more than one
    token, its own keys follow the ring's.
    """
    length, window = segments_BT.shape[1], c.sliding_window if kind == "local" else 0
    query_T, key_segments_BS = jnp.arange(length), segments_BT
    key_S = query_T
    if cache is not None:
        start, key_segments_BS = cache["length"], cache["segments"]
        query_T, key_S = start + query_T, jnp.arange(key_segments_BS.shape[1])
        whole, ring = len(key_S), slots(c, kind, len(key_S))
        if length == 1:  # all slots are a ring, which single tokens may go round
            key_S = ring_indices(start, ring)
        elif ring < whole:
            key_S = jnp.concatenate([ring_indices(start - 1, ring), query_T])
        if ring < whole:
            key_segments_BS = jnp.where(key_S < 0, -1, key_segments_BS[:, key_S % whole])
    theta = c.local_rope_theta if kind == "local" and c.local_rope_theta else c.rope_theta
    return View(
        Mask(
            segments_BT,
            key_segments_BS,
            query_T,
            key_S,
            causal=c.causal,
            window=window,
            own=cache is None,
        ),
        rotary_angles(c, positions_BT, theta) if c.positions == "rotary" else None,
    )
