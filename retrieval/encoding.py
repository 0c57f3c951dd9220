"""What a memory asks of its encoder: the same one for ever, and a finite unit vector for every text."""

import hashlib
from collections.abc import Callable

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.passages import listed
from retrieval.store import Store
from retrieval.vectors import unit_rows

Encode = Callable[[list[str]], np.ndarray]  # list[str] -> float32 [N, D]

PROBE = "The quick brown fox jumps over the lazy dog."


def fingerprint(encoder: Encode, probe: np.ndarray | None = None) -> str:
    """The encoder's own `fingerprint`, or for a plain callable a hash of its vector of a fixed sentence."""
    _check_callable(encoder)
    own = getattr(encoder, "fingerprint", None)
    if isinstance(own, str):
        return own
    probe = encoded(encoder, [PROBE], None) if probe is None else probe
    return (
        "probe-"
        + hashlib.sha256(
            np.round(probe, 3).astype(np.float32).tobytes() + str(probe.shape).encode()
        ).hexdigest()[:32]
    )


def made_with(store: Store, encoder: Encode, probe: np.ndarray | None = None) -> bool:
    """Whether it is the encoder of the memory, which may have its fingerprint of an earlier version."""
    return store.fingerprint in (
        fingerprint(encoder, probe),
        getattr(encoder, "former_fingerprint", None),
    )


def check_encoder(encoder: Encode, store: Store) -> None:
    if not made_with(store, encoder):
        given = fingerprint(encoder)
        source = f" ({store.encoder_source})" if store.encoder_source else ""
        raise RetrievalError(
            f"{store.path} was made with the encoder {store.fingerprint}{source}, the one given is {given}: "
            "their vectors cannot be compared; open it with its own encoder, change to this one (reembed), or build a new memory"
        )


def remembered_encoder(store: Store) -> Encode:
    encoder = encoder_like(store)
    check_encoder(encoder, store)
    return encoder


def encoder_like(store: Store, path: str | None = None, **changed) -> Encode:
    """The encoder of a memory, its files at another `path` if one is given, with some options of Encoder.from_hf changed."""
    if not (path or store.encoder_source):
        raise RetrievalError(
            f"{store.path} was made with an encoder that has no path: give it, Memory.open(path, encoder) or --encoder=PATH"
        )
    from retrieval import sentences
    from retrieval.encoder import Encoder

    where, options = sentences.recalled(store.encoder_source, path)
    return Encoder.from_hf(where, **options | changed)


def encoded(encoder: Encode, texts: list[str], dim: int | None) -> np.ndarray:
    """The encoder's answer as unit rows [N, D]; RetrievalError names what is wrong with it."""
    _check_callable(encoder)
    vectors = unit_rows(encoder(texts), dim, "the encoder's vectors", texts)
    if len(vectors) != len(texts):
        raise RetrievalError(
            f"the encoder answered {len(texts)} texts ({listed(t[:40] for t in texts)}) with {len(vectors)} vectors"
        )
    return vectors


def _check_callable(encoder: object) -> None:
    if not callable(encoder):
        raise RetrievalError(
            f"the encoder is a {type(encoder).__name__}: expected a function of texts, such as retrieval.Encoder"
        )
