"""Cached decoding: prefill, decode step, samplers, beam search and `generate`.

Names load on first use.
"""

import importlib
from typing import Any

_HOMES = {
    "lm.generation.answers": ("generate", "stream"),
    "lm.generation.beams": ("Beams",),
    "lm.generation.decode": ("decode_step", "prefill"),
    "lm.generation.requests": ("GenerationError",),
    "lm.generation.samplers": ("Greedy", "Sample"),
    "lm.generation.text": ("generate_text", "stream_text"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(
            f"module 'lm.generation' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(_HOME_OF[name]), name)
