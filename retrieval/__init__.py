"""The non-parametric side: a memory of passages that can be changed, searched and read by a language model.

Names are loaded when first used, so that `import retrieval` costs nothing.
"""

import importlib

import lm  # noqa: F401 (python -m retrieval.x: answers Ctrl-C, and checks what JAX reads, before the rest is imported)

_HOMES = {
    "Answer": "retrieval.answering", "Reader": "retrieval.answering", "answer": "retrieval.answering",
    "CrossEncoder": "retrieval.cross_encoder",
    "Commit": "retrieval.passages", "Diff": "retrieval.passages", "Hit": "retrieval.passages", "Passage": "retrieval.passages",
    "Encoder": "retrieval.encoder", "ExactIndex": "retrieval.exact_index", "ScannIndex": "retrieval.scann_index",
    "EVERY_GROUP": "retrieval.filters", "Filter": "retrieval.filters",
    "Memory": "retrieval.memory", "RetrievalError": "retrieval.errors",
    "ShardedIndex": "retrieval.sharded_index", "Tuning": "retrieval.tuning",
}  # fmt: skip

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(
            f"module 'retrieval' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(_HOMES[name]), name)
