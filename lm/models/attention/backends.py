"""Which computation a model's attention uses: `model.attention_backend`."""

import abc
import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm import plugins
from lm.models.attention import chunked, dense
from lm.models.attention.bias import Bias
from lm.models.attention.mask import Mask
from lm.models.config import ConfigError, ModelConfig

FIELD = "model.attention_backend"
AUTO = "auto"  # dense or chunked, by the scores of a head: queries times keys
MOST_DENSE = 1024 * 1024  # more scores are computed in blocks
MOST_DENSE_CPU = 256 * 256  # the same on a CPU, where blocks fit its caches; not with a bias


@dataclasses.dataclass(frozen=True)
class Backend(abc.ABC):
    """A way to compute attention. All of them return the same values."""

    def why_not(self, config: ModelConfig, mask: Mask, platform: str) -> str:
        """Why this model or mask cannot be served on this platform; "" if it can.

        Called before anything is compiled: the mask's arrays have shapes, not values. platform: as
        `jax.default_backend()`, such as "cpu".
        """
        return ""

    @abc.abstractmethod
    def __call__(
        self, q, k, v, mask: Mask, bias: Bias | None, *, scale: float, softcap: float
    ) -> tuple[jax.Array, jax.Array]:
        """Map q [B, T, H, K] and k, v [B, S, J, K] to y [B, T, H, K] and lse float32 [B, T, H].

        y is in the dtype of v. Both are differentiable. A query that sees no key gets 0 and -inf.
        """


@dataclasses.dataclass(frozen=True)
class Dense(Backend):
    """All scores at once. Fastest for short rows; memory grows with the square of the length."""

    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        return dense.attend(q, k, v, mask, bias, scale=scale, softcap=softcap)


@dataclasses.dataclass(frozen=True)
class Chunked(Backend):
    """Blocks of keys with an online softmax; memory grows with the length."""

    block: int = 0  # queries, and keys, at once; 0 = what suits the platform

    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        return chunked.attend(q, k, v, mask, bias, scale=scale, softcap=softcap, block=self.block)


BACKENDS: Mapping[str, type[Backend]] = {"dense": Dense, "chunked": Chunked}


def check(c: ModelConfig) -> None:
    """Raise ConfigError for a backend that cannot be found."""
    plugins.find(FIELD, c.attention_backend, {AUTO: Dense, **BACKENDS}, Backend)


def choose(c: ModelConfig, queries: int, keys: int, bias: bool, cached: bool = False) -> str:
    """Name of the backend of this many queries and keys.

    It is `model.attention_backend`, or for "auto" one of "dense" and "chunked".

    bias: scores have a relative position bias, which dense attention computes once for all layers.
    cached: the keys are a cache's. With few queries such a step is always dense, and with another
    backend than "auto" and "chunked" in any case.
    """
    name = c.attention_backend
    if cached and name not in (AUTO, "chunked"):
        return "dense"
    if name != AUTO and not cached:
        return name
    on_cpu = jax.default_backend() == "cpu" and not bias
    most = MOST_DENSE_CPU if on_cpu and not cached else MOST_DENSE
    return "dense" if queries * keys <= most else "chunked"


def described(c: ModelConfig, lengths: tuple[int, int]) -> str:
    """Which backend serves the attention of rows of these lengths, (own, to read), and why."""
    rows = {"rows": lengths[0], "encoder": c.encoder_layers and lengths[1]}
    has_bias = bool(c.relative_buckets)
    parts = {name: choose(c, n, n, has_bias) for name, n in rows.items() if n}
    shown = ", ".join(f"{how} for {name} of {rows[name]}" for name, how in parts.items())
    limit = MOST_DENSE_CPU if jax.default_backend() == "cpu" and not has_bias else MOST_DENSE
    why = f" (auto: dense up to {limit**0.5:.0f} tokens)" if c.attention_backend == AUTO else ""
    return f"attention: {shown}{why}"


def shared_bias(c: ModelConfig, bias: Bias, mask: Mask, cached: bool) -> Bias | jax.Array | None:
    """The bias of all layers, as their backend takes it: dense attention expands it only once."""
    name = choose(c, len(mask.q_index), len(mask.k_index), True, cached)
    return dense.biases(bias, mask) if name == "dense" else bias


def attend(
    c: ModelConfig, q, k, v, mask: Mask, bias: Any = None, *, cached=False, zero_unseen=False
) -> jax.Array:
    """Compute attention with the model's backend, [B, T, H, K]; see `choose`.

    Dense attention gives a query that sees no key the mean of all values, unless `zero_unseen`.
    """
    scale = (c.score_dim or c.head_dim) ** -0.5
    options = dict(scale=scale, softcap=c.attention_softcap)
    name = choose(c, q.shape[1], k.shape[1], bias is not None, cached)
    if name == "dense":
        y = dense.values(q, k, v, mask, bias, **options)
        return dense.zero_unseen(y, mask) if zero_unseen else y
    kind = plugins.find(FIELD, name, BACKENDS, Backend)
    where = f"{FIELD}={name!r} ({os.path.relpath(inspect.getfile(kind))})"
    try:
        backend = kind()
        reason = backend.why_not(c, mask, jax.default_backend())
        found = None if reason else backend(q, k, v, mask, bias, **options)
    except ConfigError:
        raise
    except Exception as error:  # a user's file may raise anything
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{where} raised {type(error).__name__}: {said}") from error
    if reason:
        raise ConfigError(f"{where} cannot compute this model: {reason}; use 'dense' or 'chunked'")
    return _checked(where, found, q, v)


def _checked(where: str, found, q, v) -> jax.Array:
    """Return y. Raises ConfigError for results of other shapes or dtypes than expected."""
    expected = {"y": (q.shape, v.dtype), "lse": (q.shape[:-1], jnp.dtype(jnp.float32))}
    if not isinstance(found, tuple) or len(found) != 2:
        raise ConfigError(f"{where} returned {type(found).__name__}, expected a tuple (y, lse)")
    for (name, (shape, dtype)), array in zip(expected.items(), found, strict=True):
        has = (jnp.shape(array), jnp.result_type(array))
        if has != (shape, dtype):
            raise ConfigError(
                f"{where} returned {name} {has[1]}{list(has[0])}, expected {dtype}{list(shape)}"
            )
    return found[0]
