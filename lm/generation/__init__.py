"""Cached decoding: prefill, decode step, samplers, and `generate` over them."""

from lm.generation.decode import GenerationError, decode_step, generate, prefill, stream
from lm.generation.samplers import Greedy, Sample

__all__ = ["GenerationError", "Greedy", "Sample", "decode_step", "generate", "prefill", "stream"]
