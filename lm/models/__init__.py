"""One LanguageModel for every architecture."""

from lm.models.cache import init_cache
from lm.models.config import ConfigError, ModelConfig
from lm.models.decoding import for_decoding
from lm.models.model import LanguageModel, build, forward, separate

__all__ = [
    "ConfigError",
    "LanguageModel",
    "ModelConfig",
    "build",
    "for_decoding",
    "forward",
    "init_cache",
    "separate",
]
