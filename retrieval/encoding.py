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
    own = getattr(encoder, "fingerprint", None)
    if isinstance(own, str):
        return own
    probe = encoded(encoder, [PROBE], None) if probe is None else probe
    return "probe-" + hashlib.sha256(np.round(probe, 3).astype(np.float32).tobytes() + str(probe.shape).encode()).hexdigest()[:32]


def check_encoder(encoder: Encode, store: Store) -> None:
    given = fingerprint(encoder)
    if given != store.fingerprint:
        made_with = f" ({store.encoder_source})" if store.encoder_source else ""
        raise RetrievalError(
            f"{store.path} was made with the encoder {store.fingerprint}{made_with}, the one given is {given}: "
            "their vectors cannot be compared; open it with its own encoder, or build a new memory"
        )


def remembered_encoder(store: Store) -> Encode:
    if not store.encoder_source:
        raise RetrievalError(f"{store.path} was made with an encoder that has no path: give it, Memory.open(path, encoder)")
    from retrieval.encoder import Encoder

    encoder = Encoder.from_hf(store.encoder_source)
    check_encoder(encoder, store)
    return encoder


def encoded(encoder: Encode, texts: list[str], dim: int | None) -> np.ndarray:
    """The encoder's answer as unit rows [N, D]; RetrievalError names what is wrong with it."""
    vectors = unit_rows(encoder(texts), dim, "the encoder's vectors")
    if len(vectors) != len(texts):
        raise RetrievalError(f"the encoder answered {len(texts)} texts ({listed(t[:40] for t in texts)}) with {len(vectors)} vectors")
    return vectors
