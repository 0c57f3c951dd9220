"""A memory's encoder with another for questions: what training of the query side leaves."""

import logging

import numpy as np

from lm.weights import loading
from lm.weights.runs.model_files import kept_auxiliary
from lm.weights.runs.weights import load_beside
from retrieval.encoders import sentence_transformers
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.encoding import encoder_like
from retrieval.errors import RetrievalError
from retrieval.store.store import Store

RETRIEVER = "retriever"  # name of the model that a run trains beside its reader
NOT_OF_FROM_HF = ("dtype",)  # options of Encoder.from_hf alone

log = logging.getLogger(__name__)


class TwoSided:
    """Embeds passages with `encoder`, which the memory was made with, and questions with another.

    Raises RetrievalError if the two have vectors of different widths.
    """

    def __init__(self, encoder: Encoder, questions: Encoder):
        if encoder.dim != questions.dim:
            raise RetrievalError(
                f"the encoder of questions has vectors of {questions.dim} numbers, and the "
                f"memory's of {encoder.dim}: take one that was trained with this memory's encoder"
            )
        self.encoder, self.questions = encoder, questions
        self.fingerprint, self.source = encoder.fingerprint, encoder.source
        self.former_fingerprint = encoder.former_fingerprint
        self.passages, self.queries = encoder.passages, questions.queries
        self.query_tokens = questions.query_tokens

    def __call__(self, texts: list[str]) -> np.ndarray:
        return self.encoder(texts)


def with_retriever(store: Store, run: str, path: str | None = None) -> TwoSided | None:
    """The encoder of a memory, with the one of questions that a run trained from it.

    path: where the memory's encoder is now, if it has moved. None where `run` is no run, where it
    trained none, and, with a warning, where that began as another encoder than the memory's.
    """
    if not loading.is_run(run):
        return None
    kept = kept_auxiliary(run).get(RETRIEVER)
    if kept is None or not kept.trained or not store.encoder_source:
        return None
    where, options = sentence_transformers.recalled(store.encoder_source)
    if kept.model != where:
        log.warning(
            "the retriever of %s was trained from %s, and the memory was made with %s: questions "
            "are embedded with the memory's encoder",
            *(run, kept.model, where),
        )
        return None
    own = {name: value for name, value in options.items() if name not in NOT_OF_FROM_HF}
    questions = Encoder(*load_beside(run, RETRIEVER), source=run, **own)
    encoder = encoder_like(store, path)
    assert isinstance(encoder, Encoder)
    return TwoSided(encoder, questions)
