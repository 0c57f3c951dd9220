"""One model, every architecture."""

from lm.models.config import ConfigError, ModelConfig
from lm.models.model import LanguageModel, build, forward, init_cache, separate

__all__ = ["ConfigError", "LanguageModel", "ModelConfig", "build", "forward", "init_cache", "separate"]
