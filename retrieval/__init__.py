"""The non-parametric side: a memory of passages to search, change and read with a language model.

Names are imported on first use, so `import retrieval` is fast.
"""

import importlib

# First, so that `python -m retrieval.x` handles Ctrl-C and checks JAX's environment early.
import lm  # noqa: F401

_HOMES = {
    "Answer": "retrieval.reading.answering",
    "Reader": "retrieval.reading.reader",
    "load_reader": "retrieval.reading.reader",
    "answer": "retrieval.reading.answering",
    "CrossEncoder": "retrieval.encoders.cross_encoder",
    "Commit": "retrieval.passages",
    "Diff": "retrieval.passages",
    "Hit": "retrieval.passages",
    "Passage": "retrieval.passages",
    "Encoder": "retrieval.encoders.encoder",
    "ExactIndex": "retrieval.index.exact",
    "ScannIndex": "retrieval.index.approximate",
    "EVERY_GROUP": "retrieval.filters",
    "Filter": "retrieval.filters",
    "Memory": "retrieval.memory",
    "RetrievalError": "retrieval.errors",
    "ShardedIndex": "retrieval.index.sharded",
    "Tuning": "retrieval.index.tuning",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(
            f"module 'retrieval' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(_HOMES[name]), name)
