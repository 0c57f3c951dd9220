"""Parametric side: models, training, generation, evaluation. Public names load on first use."""

import importlib
import os
import sys
import types

from lm import interrupts

if sys.argv[:1] == ["-m"]:  # python -m lm.x, before that module is imported
    interrupts.starting()
os.environ.setdefault(
    "TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"
)  # transformers would warn that torch is missing; only its tokenizers are used

_HOMES = {
    "lm.batch": ("Batch", "Output"),
    "lm.models": (
        "ConfigError",
        "LanguageModel",
        "ModelConfig",
        "build",
        "for_decoding",
        "forward",
        "init_cache",
        "separate",
    ),
    "lm.weights.loading": ("load",),
    "lm.weights": ("WeightsError", "from_hf", "to_hf"),
    "lm.heads": ("encoder_of", "with_head"),
    "lm.weights.tokenizer": ("load_tokenizer",),
    "lm.generation": (
        "Beams",
        "Greedy",
        "Sample",
        "decode_step",
        "generate",
        "generate_text",
        "prefill",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__():
    return __all__


class _Package(types.ModuleType):
    """Module type that keeps `lm.generate` the function after lm/generate.py was imported."""

    @property
    def generate(self):
        return __getattr__("generate")

    @generate.setter
    def generate(self, module):
        pass


sys.modules[__name__].__class__ = _Package
