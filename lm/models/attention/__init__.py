"""Attention: what may be seen as data, the backends that compute it, the modules that use both."""

from lm.models.attention import chunked, dense
from lm.models.attention.backends import BACKENDS, Backend, attend, shared_bias
from lm.models.attention.bias import Bias
from lm.models.attention.mask import Mask, View, see
from lm.models.attention.merge import merge
from lm.models.attention.modules import (
    Attention,
    CrossAttention,
    NeighbourAttention,
    RelativeBias,
)

__all__ = [
    "BACKENDS",
    "Attention",
    "Backend",
    "Bias",
    "CrossAttention",
    "Mask",
    "NeighbourAttention",
    "RelativeBias",
    "View",
    "attend",
    "chunked",
    "dense",
    "merge",
    "see",
    "shared_bias",
]
