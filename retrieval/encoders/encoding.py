"""Calling a memory's encoder: its identity, and unit vectors that are checked."""

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.index.vectors import unit_rows
from retrieval.passages import Passage, listed
from retrieval.progress import chunks_with_progress
from retrieval.store.locks import ReadersWriter
from retrieval.store.store import Store

Encode = Callable[[list[str]], np.ndarray]  # list[str] -> float32 [N, D]

PROBE = "The quick brown fox jumps over the lazy dog."


class MemoryEncoder:
    """The encoder of an open memory: loaded when first needed, used by one thread at a time."""

    def __init__(self, store: Store, encode: Encode | None, lock: ReadersWriter):
        self.encode = encode
        self._store, self._lock = store, lock
        self._encoder_lock = threading.Lock()

    def vectors(
        self, texts: Sequence[str], what: str, side: str = "passages"
    ) -> tuple[np.ndarray, str]:
        """Return unit rows, float32 [N, dim], and the fingerprint of the encoder that made them.

        what: the label of the progress bar. side: "passages" or "queries", which an encoder may
        treat differently.
        """
        with self._encoder_lock:
            if self.encode is None:
                self.encode = remembered_encoder(self._store)
            with self._lock.read():
                encode, dim, encoder = self.encode, self._store.dim, self._store.fingerprint
            encode = getattr(encode, side, encode)
            parts = [encoded(encode, list(part), dim) for part in chunks_with_progress(texts, what)]
        return np.concatenate(parts) if parts else np.zeros((0, dim), np.float32), encoder

    def passage_vectors(
        self, passages: Sequence[Passage], like: Collection[str]
    ) -> tuple[np.ndarray, str]:
        """Return the vectors of passages, float32 [N, dim], and their encoder's fingerprint.

        A passage with the title and text of a stored one in `like` (ids) takes its vector.
        """
        encoder, old = self._store.fingerprint, self._store.get(like)
        kept, kept_ids = self._store.vectors(like)
        known = {old[id][0].searchable: vector for id, vector in zip(kept_ids, kept, strict=True)}
        new = list(dict.fromkeys(p.searchable for p in passages if p.searchable not in known))
        if new:
            known.update(zip(new, self.vectors(new, "encoding passages")[0], strict=True))
        rows = np.array([known[passage.searchable] for passage in passages], np.float32)
        return rows.reshape(len(passages), self._store.dim), encoder


def fingerprint(encoder: Encode, probe: np.ndarray | None = None) -> str:
    """Return the encoder's `fingerprint`, or for a plain callable a hash of one vector.

    The hash is of its vector of the sentence PROBE.
    """
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
    """Whether the store's vectors come from `encoder`.

    Its `former_fingerprint`, of an earlier version of this code, is accepted too.
    """
    return store.fingerprint in (
        fingerprint(encoder, probe),
        getattr(encoder, "former_fingerprint", None),
    )


def check_encoder(encoder: Encode, store: Store) -> None:
    if not made_with(store, encoder):
        given = fingerprint(encoder)
        source = f" ({store.encoder_source})" if store.encoder_source else ""
        raise RetrievalError(
            f"{store.path} was made with the encoder {store.fingerprint}{source}, the one given "
            f"is {given}: their vectors cannot be compared; open it with its own encoder, change "
            "to this one (reembed), or build a new memory"
        )


def remembered_encoder(store: Store) -> Encode:
    encoder = encoder_like(store)
    check_encoder(encoder, store)
    return encoder


def encoder_like(store: Store, path: str | None = None, **changed) -> Encode:
    """Load the encoder that a memory records.

    path: where its files are now, if they have moved. changed: options of Encoder.from_hf to
    override.
    """
    if not (path or store.encoder_source):
        raise RetrievalError(
            f"{store.path} was made with an encoder that has no path: give it, Memory.open(path, "
            "encoder) or --encoder=PATH"
        )
    from retrieval.encoders import sentence_transformers
    from retrieval.encoders.encoder import Encoder

    where, options = sentence_transformers.recalled(store.encoder_source, path)
    return Encoder.from_hf(where, **options | changed)


def encoded(encoder: Encode, texts: list[str], dim: int | None) -> np.ndarray:
    """Return the encoder's output as unit rows [N, D].

    Raises RetrievalError saying what is wrong with it.
    """
    _check_callable(encoder)
    vectors = unit_rows(encoder(texts), dim, "the encoder's vectors", texts)
    if len(vectors) != len(texts):
        raise RetrievalError(
            f"the encoder answered {len(texts)} texts ({listed(t[:40] for t in texts)}) with "
            f"{len(vectors)} vectors"
        )
    return vectors


def _check_callable(encoder: object) -> None:
    if not callable(encoder):
        raise RetrievalError(
            f"the encoder is a {type(encoder).__name__}: expected a function of texts, such as "
            "retrieval.Encoder"
        )
