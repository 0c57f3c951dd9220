"""Which computation a model's attention uses: `model.attention_backend`."""

import abc
import dataclasses
import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm import plugins
from lm.models.attention import chunked, cudnn, dense, ring, splash
from lm.models.attention.bias import Bias
from lm.models.attention.mask import Mask
from lm.models.config import ConfigError, ModelConfig

FIELD = "model.attention_backend"
AUTO = "auto"  # the platform's kernel; else dense or chunked, by queries times keys
KERNELS = {"gpu": "cudnn", "tpu": "splash"}
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
    ) -> tuple[jax.Array, jax.Array | None]:
        """Map q [B, T, H, K] and k, v [B, S, J, K] to y [B, T, H, K] and lse float32 [B, T, H].

        y is in the dtype of v. Both are differentiable. A query that sees no key gets 0 and -inf.
        lse is None from a kernel that has none with a gradient; `merge` refuses such a result.
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


@dataclasses.dataclass(frozen=True)
class Cudnn(Backend):
    """cuDNN's fused kernel, for NVIDIA GPUs."""

    def why_not(self, config, mask, platform):
        return cudnn.why_not(config, mask, platform)

    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        assert bias is None and not softcap, "`why_not` refuses them"
        return cudnn.attend(q, k, v, mask, scale=scale), None


@dataclasses.dataclass(frozen=True)
class Splash(Backend):
    """A Pallas kernel, for TPUs."""

    def why_not(self, config, mask, platform):
        return splash.why_not(config, mask, platform)

    def __call__(self, q, k, v, mask, bias, *, scale, softcap):
        assert bias is None, "`why_not` refuses it"
        return splash.attend(q, k, v, mask, scale=scale, softcap=softcap), None


BACKENDS: Mapping[str, type[Backend]] = {
    "dense": Dense,
    "chunked": Chunked,
    "cudnn": Cudnn,
    "splash": Splash,
}


def check(c: ModelConfig) -> None:
    """Raise ConfigError for a backend that cannot be found."""
    plugins.find(FIELD, c.attention_backend, {AUTO: Dense, **BACKENDS}, Backend)


def choose(
    c: ModelConfig, mask: Mask, bias: bool, cached: bool = False, joined: bool = False
) -> str:
    """Name of the backend of such a mask.

    It is `model.attention_backend`. For "auto" it is the kernel of the platform if that can compute
    it, else one of "dense" and "chunked".

    bias: scores have a relative position bias, which dense attention computes once for all layers.
    cached: the keys are a cache's. With few queries such a step is always dense, and with another
    backend than "auto" and "chunked" in any case.
    joined: what it gives is joined with attention to other keys, so it must give lse.
    """
    name = c.attention_backend
    if cached and name not in (AUTO, "chunked"):
        return "dense"
    if name != AUTO and not cached:
        return name
    kernel, reason = _kernel(c, mask)
    if kernel and not reason and not cached and not joined:
        return kernel
    on_cpu = jax.default_backend() == "cpu" and not bias
    most = MOST_DENSE_CPU if on_cpu and not cached else MOST_DENSE
    return "dense" if len(mask.q_index) * len(mask.k_index) <= most else "chunked"


def _kernel(c: ModelConfig, mask: Mask) -> tuple[str, str]:
    """Name of the platform's kernel, or "", and why it cannot compute this, or ""."""
    platform = jax.default_backend()
    name = KERNELS.get(platform, "")
    return name, BACKENDS[name]().why_not(c, mask, platform) if name else ""


def described(c: ModelConfig, lengths: tuple[int, int]) -> str:
    """Which backend serves the attention of rows of these lengths, (own, to read), and why."""
    own, read = lengths
    parts = [(f"rows of {own}", c, _row(c, own))]
    if c.encoder_layers:
        between = Mask.between(*(jnp.zeros((1, n), jnp.int32) for n in lengths))
        encoder = (f"encoder of {read}", c.encoder, _row(c.encoder, read))
        parts += [encoder, ("reading it", c, between)]
    has_bias = bool(c.relative_buckets)
    chosen = {
        part + ring.described(mask): choose(
            each, ring.of_device(mask), has_bias and mask.own, joined=ring.joins(mask)
        )
        for part, each, mask in parts
    }
    shown = "attention: " + ", ".join(f"{name} for {part}" for part, name in chosen.items())
    if c.attention_backend != AUTO:
        return shown
    kernels = dict.fromkeys(_kernel(each, mask) for _, each, mask in parts)
    why = [f"not {kernel}, because {reason}" for kernel, reason in kernels if reason]
    if not {*chosen.values()} <= {*KERNELS.values()}:
        on_cpu = jax.default_backend() == "cpu" and not has_bias
        why.append(f"dense up to {(MOST_DENSE_CPU if on_cpu else MOST_DENSE) ** 0.5:.0f} tokens")
    return f"{shown} (auto{': ' * bool(why)}{'; '.join(why)})"


def _row(c: ModelConfig, length: int) -> Mask:
    """Mask of a row's self-attention in training."""
    segments, index = jnp.zeros((1, length), jnp.int32), jnp.arange(length)
    attending = set(c.layer_kinds) - {"ssm"}
    window = c.sliding_window if attending == {"local"} else 0
    mask = Mask(segments, segments, index, index, causal=c.causal, window=window, own=True)
    return mask.with_window_as_data() if len(attending) > 1 else mask


def shared_bias(c: ModelConfig, bias: Bias, mask: Mask, cached: bool) -> Bias | jax.Array | None:
    """The bias of all layers, as their backend takes it: dense attention expands it only once."""
    if ring.split(len(mask.q_index)):
        return bias
    name = choose(c, mask, True, cached)
    return dense.biases(bias, mask) if name == "dense" else bias


def attend(
    c: ModelConfig, q, k, v, mask: Mask, bias: Any = None, *, cached=False, zero_unseen=False
) -> jax.Array:
    """Compute attention with the model's backend, [B, T, H, K]; see `choose`.

    Where the mesh splits the length, every device computes its own part by `ring`. Dense attention
    of whole rows gives a query that sees no key the mean of all values, unless `zero_unseen`.
    """
    if ring.split(q.shape[1]):
        local = functools.partial(_local, c, cached)
        return ring.attend(local, q, k, v, mask, bias, cached=cached)
    if choose(c, mask, bias is not None, cached) == "dense":
        y = dense.values(q, k, v, mask, bias, **_options(c))
        return dense.zero_unseen(y, mask) if zero_unseen else y
    return _local(c, cached, q, k, v, mask, bias)[0]


def _options(c: ModelConfig) -> dict[str, float]:
    return dict(scale=(c.score_dim or c.head_dim) ** -0.5, softcap=c.attention_softcap)


def _local(
    c: ModelConfig, cached: bool, q, k, v, mask: Mask, bias, joined: bool = False
) -> tuple[jax.Array, Any]:
    """y and lse by the backend of this mask; see `choose`."""
    name = choose(c, mask, bias is not None, cached, joined)
    kind = plugins.find(FIELD, name, BACKENDS, Backend)
    where = f"{FIELD}={name!r} ({os.path.relpath(inspect.getfile(kind))})"
    try:
        backend = kind()
        reason = backend.why_not(c, mask, jax.default_backend())
        found = None if reason else backend(q, k, v, mask, bias, **_options(c))
    except ConfigError:
        raise
    except Exception as error:  # a user's file may raise anything
        said = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{where} raised {type(error).__name__}: {said}") from error
    if reason:
        raise ConfigError(f"{where} cannot compute this model: {reason}; use 'dense' or 'chunked'")
    return _checked(where, found, q, v, joined)


def _checked(where: str, found, q, v, joined: bool) -> tuple[jax.Array, Any]:
    """Return (y, lse). Raises ConfigError for results of other shapes or dtypes than expected."""
    expected = {"y": (q.shape, v.dtype), "lse": (q.shape[:-1], jnp.dtype(jnp.float32))}
    if not isinstance(found, tuple) or len(found) != 2:
        raise ConfigError(f"{where} returned {type(found).__name__}, expected a tuple (y, lse)")
    for (name, (shape, dtype)), array in zip(expected.items(), found, strict=True):
        if name == "lse" and array is None:
            if joined:
                raise ConfigError(
                    f"{where} returned no lse, by which the parts of a row are joined; use 'dense' "
                    "or 'chunked', or set mesh.sequence=1"
                )
            continue
        has = (jnp.shape(array), jnp.result_type(array))
        if has != (shape, dtype):
            raise ConfigError(
                f"{where} returned {name} {has[1]}{list(has[0])}, expected {dtype}{list(shape)}"
            )
    return found
