"""One LanguageModel for every architecture."""

from lm.models.cache import init_cache
from lm.models.config import ConfigError, ModelConfig
from lm.models.model import LanguageModel, build, forward, separate

__all__ = [
    "ConfigError",
    "LanguageModel",
    "ModelConfig",
    "build",
    "forward",
    "init_cache",
    "separate",
]
