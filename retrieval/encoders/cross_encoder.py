"""CrossEncoder: scores a query and a passage together (Nogueira & Cho 2019, Passage re-ranking with
BERT).
"""

from functools import partial

import jax
import numpy as np

import lm
from lm.models import inputs
from retrieval.encoders.encoder import by_length, lengths_to
from retrieval.errors import RetrievalError
from retrieval.sanitising import without_control

LABELS = (1, 2)  # a score; or irrelevant, relevant


class CrossEncoder:
    """(query, N texts) -> float32 [N], higher is better; for `Memory.search(..., rerank=...)`.

    The model classifies sequences. A single label is the score; of two labels the score is the
    second logit minus the first. Texts beyond `max_length` tokens, the query's included, are
    truncated.
    """

    def __init__(self, model, params, tokenizer, max_length: int | None = None):
        c = model.config
        if c.head != "sequence_classification" or c.n_labels not in LABELS:
            labels = f" with {c.n_labels} labels" if c.n_labels else ""
            raise RetrievalError(
                f"a {c.family} model with head={c.head!r}{labels} scores no pairs: expected "
                "sequence_classification with one label, or two"
            )
        self.max_length = min(c.max_length, max_length or c.max_length)
        self._config, self._tokenizer, self._params = c, tokenizer, params
        self._pad, self._typed = c.pad_token_id or 0, c.type_vocab_size > 1
        self._scores = jax.jit(partial(_scores, model))

    @classmethod
    def from_hf(cls, path_or_id, max_length: int | None = None) -> "CrossEncoder":
        """Load from a directory or hub id.

        Raises ValueError (lm.WeightsError) when it cannot be read, RetrievalError for another head.
        """
        return cls(*lm.from_hf(path_or_id), lm.load_tokenizer(path_or_id), max_length)

    def __call__(self, query: str, texts: list[str]) -> np.ndarray:
        """Score texts. Raises RetrievalError for a query that leaves no room for a text."""
        asked = len(self._tokenizer(query, "")["input_ids"])
        if asked >= self.max_length:
            raise RetrievalError(
                f"the query {query[:40]!r}... takes {asked} of the reranker's {self.max_length} "
                "tokens: ask a shorter one"
            )
        scores = np.zeros(len(texts), np.float32)
        if not len(texts):
            return scores
        # Separators spelled in a text must not be read as control tokens.
        plain = [without_control(self._tokenizer, text) for text in texts]
        pairs = self._tokenizer(
            [query] * len(texts), plain, truncation="only_second", max_length=self.max_length
        )
        kinds = pairs["token_type_ids"] if self._typed else None
        for chosen, tokens, segments in by_length(
            pairs["input_ids"], lengths_to(self.max_length), self._pad
        ):
            types = None
            if kinds is not None:
                types = np.zeros_like(tokens)
                for row, i in enumerate(chosen):
                    types[row, : len(kinds[i])] = kinds[i]
            batch = lm.Batch.of(tokens, segments, types=types)
            inputs.check(self._config, batch, self._tokenizer)
            scores[chosen] = np.asarray(self._scores(self._params, batch))[: len(chosen)]
        return scores


def _scores(model, params, batch) -> jax.Array:
    """Return float32 [B]."""
    logits = model.apply({"params": params}, batch).logits
    return logits[:, -1] - logits[:, 0] if logits.shape[-1] == 2 else logits[:, 0]
