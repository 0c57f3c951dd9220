"""Cached decoding: prefill, decode step, samplers, beam search, and `generate` over them."""

from lm.generation.answers import generate, stream
from lm.generation.beams import Beams
from lm.generation.decode import decode_step, prefill
from lm.generation.requests import GenerationError
from lm.generation.samplers import Greedy, Sample
from lm.generation.text import generate_text, stream_text

__all__ = [
    "Beams", "GenerationError", "Greedy", "Sample", "decode_step", "generate", "generate_text", "prefill", "stream", "stream_text",
]  # fmt: skip
