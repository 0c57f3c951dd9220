"""Attention: what may be seen as data, the computation, and the modules that use both."""

from lm.models.attention.bias import Bias
from lm.models.attention.dense import attend, biases
from lm.models.attention.mask import Mask, View, see
from lm.models.attention.modules import (
    Attention,
    CrossAttention,
    NeighbourAttention,
    RelativeBias,
)

__all__ = [
    "Attention",
    "Bias",
    "CrossAttention",
    "Mask",
    "NeighbourAttention",
    "RelativeBias",
    "View",
    "attend",
    "biases",
    "see",
]
