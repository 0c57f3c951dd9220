"""Import and export of weights.

Hugging Face directories are read and written. Hub ids and GGUF files are read.
"""

from lm.weights.errors import WeightsError
from lm.weights.load import from_hf
from lm.weights.resolve import resolve
from lm.weights.save import to_hf

__all__ = ["WeightsError", "from_hf", "resolve", "to_hf"]
