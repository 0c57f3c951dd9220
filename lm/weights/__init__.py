"""Weights in and out: Hugging Face directories and hub ids in both directions, GGUF files in."""

from lm.weights.errors import WeightsError
from lm.weights.load import from_hf
from lm.weights.resolve import resolve
from lm.weights.save import to_hf

__all__ = ["WeightsError", "from_hf", "resolve", "to_hf"]
