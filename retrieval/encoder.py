"""Encoder: sentences to unit vectors with any encoder or decoder of ours (Sentence-BERT, Reimers & Gurevych 2019, section 3)."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lm
from retrieval.errors import RetrievalError

logger = logging.getLogger(__name__)

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # rows are padded to one of these: as many compilations at most
ROWS = 32  # texts a batch; a few queries go in a batch of 4
FEW_ROWS = 4


class Encoder:
    """list[str] -> float32 [N, dim], rows of length 1: the last hidden states pooled as the model says, else their mean over a text, or
    of a model that sees only earlier tokens the last one (Muennighoff 2022, SGPT, section 3, without its weights).

    Tokens beyond `max_length` are not seen; `truncated` counts the texts that lost some, and a warning says so.
    """

    def __init__(self, model, params, tokenizer, max_length: int | None = None, source: str = ""):
        config = model.config
        if config.encoder_layers:
            raise RetrievalError(f"{source or 'the model'} ({config.family}) is an encoder-decoder: an encoder or a decoder embeds texts")
        longest = min(config.max_length, max_length or config.max_length)
        if longest < 3:
            raise RetrievalError(f"max_length={max_length}: expected at least 3 tokens")
        self.source, self.dim, self.max_length, self.truncated = source, config.d_model, longest, 0
        self._tokenizer, self._params, self._pad = tokenizer, params, config.pad_token_id or 0
        self._lengths = lengths_to(longest)
        if config.head != "embedding":
            model, self._params = lm.with_head(model, params, "embedding")
        self._embed = jax.jit(partial(_unit_vectors, model))
        self.fingerprint = _fingerprint(config, params, longest, model.config.pooling)

    @classmethod
    def from_hf(cls, path_or_id, max_length: int | None = None) -> "Encoder":
        """From a directory or hub id of an encoder or decoder. `max_length` is by default the one of its sentence_bert_config.json, else
        the model's. Raises ValueError (lm.weights.WeightsError) when it cannot be read."""
        model, params = lm.from_hf(path_or_id)
        source = Path(path_or_id)
        settings = source / "sentence_bert_config.json"
        if max_length is None and settings.is_file():
            max_length = json.loads(settings.read_text(encoding="utf-8")).get("max_seq_length")
        name = str(source.resolve()) if source.exists() else str(path_or_id)
        return cls(model, params, lm.load_tokenizer(path_or_id), max_length, name)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Raises RetrievalError when given one string instead of a list."""
        if isinstance(texts, str):
            raise RetrievalError(f"expected a list of texts, got the string {texts[:40]!r}: put it in a list")
        rows = self._tokens(list(texts))
        vectors = np.zeros((len(rows), self.dim), np.float32)
        pending = [
            (chosen, self._embed(self._params, lm.Batch.of(tokens, segments)))
            for chosen, tokens, segments in by_length(rows, self._lengths, self._pad)
        ]
        for chosen, embedded in pending:
            vectors[chosen] = np.asarray(embedded)[: len(chosen)]
        return vectors

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            texts, add_special_tokens=True, truncation=True, max_length=self.max_length, return_overflowing_tokens=True
        )
        owners = encoded["overflow_to_sample_mapping"]
        first = {owner: part for part, owner in reversed(list(enumerate(owners)))}
        cut = len({owner for part, owner in enumerate(owners) if part != first[owner]})
        if cut:
            self.truncated += cut
            logger.warning(
                "%d of %d texts are longer than the encoder's %d tokens: their ends are not searched", cut, len(texts), self.max_length
            )
        return [encoded["input_ids"][first[number]] for number in range(len(texts))]


def lengths_to(longest: int) -> tuple[int, ...]:
    """What rows of at most `longest` tokens are padded to."""
    return (*(length for length in LENGTHS if length < longest), longest)


def by_length(rows: Sequence[Sequence[int]], lengths: Sequence[int], pad: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of rows of like length: (which rows, tokens, segments), the last two int32 [B, T], T one of `lengths`, B 32, or 4 for few."""
    order = np.argsort([len(row) for row in rows], kind="stable")
    size = FEW_ROWS if len(rows) <= FEW_ROWS else ROWS
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        longest = max(len(rows[i]) for i in chosen)
        length = next(length for length in lengths if length >= longest)
        tokens, segments = np.full((size, length), pad, np.int32), np.zeros((size, length), np.int32)
        for row, i in enumerate(chosen):
            tokens[row, : len(rows[i])], segments[row, : len(rows[i])] = rows[i], 1
        yield chosen, tokens, segments


def _unit_vectors(model, params, batch) -> jax.Array:
    """[B, D] float32, rows of length 1."""
    pooled = model.apply({"params": params}, batch).pooled
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


def _fingerprint(config, params, max_length: int, pooling: str) -> str:
    """sha256 over the shape of the model, what is pooled if not the mean, and, of every parameter, its name, shape and outermost values."""
    shape = {
        name: getattr(config, name) for name in ("family", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "activation", "norm_eps")
    }
    shape |= {} if pooling == "mean" else {"pooling": pooling}
    digest = hashlib.sha256(json.dumps([shape, max_length], sort_keys=True).encode())
    for path, value in sorted((jax.tree_util.keystr(path), value) for path, value in jax.tree_util.tree_leaves_with_path(params)):
        flat = value.reshape(-1)
        ends = np.asarray(jnp.concatenate([flat[:256], flat[-256:]]), np.float32)
        digest.update(f"{path} {value.shape}".encode() + ends.tobytes())
    return "model-" + digest.hexdigest()[:32]
