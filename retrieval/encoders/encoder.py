"""Encoder: texts to unit vectors (Sentence-BERT, Reimers & Gurevych 2019, section 3)."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lm
from lm.models import inputs
from retrieval.encoders import sentence_transformers
from retrieval.errors import RetrievalError
from retrieval.index.exact import rows_mesh
from retrieval.passages import check_unicode

logger = logging.getLogger(__name__)

# Padded lengths; each is compiled once per batch size.
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
ROWS = 32  # texts in a batch
FEW_ROWS = (1, 4)  # batch sizes for few queries: a third to two thirds of the time
# Lengths not used for small batches: nearly every query is padded to 64 and compiles once.
FEW_SKIP = (16, 32, 48, 96, 192)
POOLINGS = ("mean", "first", "last")
HASHED = 2**27  # parameter values in a fingerprint, at most about twice as many
# The text that identifies a tokenizer in a fingerprint.
SPELLED = "Zürich's café, 1998: 42 naïve don't-know-hows — and THE END. 東京"


class Encoder:
    """list[str] -> float32 [N, dim], rows of length 1.

    The last hidden states are pooled as the model says. By default that is their mean over the
    text, or the last one for a causal model (Muennighoff 2022, SGPT, section 3, without its
    weights).

    Calling it embeds texts as they are. `queries` and `passages`, which a memory calls, put a
    prefix before each, as E5 (Wang et al. 2022, section 4) and instructed models expect. Tokens
    beyond `max_length`, including the prefix, are cut; `truncated` counts the texts concerned, and
    a warning is logged. More than one batch is spread over the devices of `mesh` (axis "rows";
    default: all of this process), each of which holds the whole model.
    """

    def __init__(
        self,
        model,
        params,
        tokenizer,
        max_length: int | None = None,
        source: str = "",
        *,
        pooling: str | None = None,
        query_prefix: str = "",
        passage_prefix: str = "",
        dim: int | None = None,
        mesh: Mesh | None = None,
    ):
        """Set up an encoder; see the class.

        pooling: mean, first (BERT's [CLS]) or last, instead of the model's. dim: keep only the
        first `dim` coordinates (Kusupati et al. 2022, Matryoshka Representation Learning, section
        3). Raises RetrievalError for invalid arguments.
        """
        config = model.config
        if config.encoder_layers:
            raise RetrievalError(
                f"{source or 'the model'} ({config.family}) is an encoder-decoder: give the "
                "encoder alone, lm.encoder_of(model, params)"
            )
        if max_length is not None and (
            isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 3
        ):
            raise RetrievalError(
                f"max_length={max_length!r}: expected a whole number of at least 3 tokens"
            )
        longest = min(config.max_length, max_length or config.max_length)
        if pooling not in (None, *POOLINGS):
            raise RetrievalError(
                f"pooling={pooling!r} is unknown: expected one of {', '.join(POOLINGS)}"
            )
        if dim is not None and (
            isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= config.d_model
        ):
            raise RetrievalError(
                f"dim={dim!r}: expected 1 to {config.d_model}, the width of the model"
            )
        for name, prefix in (("query_prefix", query_prefix), ("passage_prefix", passage_prefix)):
            check_unicode(name, prefix)
            if prefix and (taken := len(tokenizer(prefix)["input_ids"])) >= longest:
                raise RetrievalError(
                    f"{name}={prefix[:40]!r} takes {taken} of the encoder's {longest} tokens: "
                    "give a shorter one"
                )
        self.source, self.dim, self.max_length, self.truncated = (
            source,
            dim or config.d_model,
            longest,
            0,
        )
        self.query_prefix, self.passage_prefix = query_prefix, passage_prefix
        self._config, self._tokenizer, self._pad, self._lengths = (
            config,
            tokenizer,
            config.pad_token_id or 0,
            lengths_to(longest),
        )
        self._mesh = mesh or rows_mesh()
        placed = params
        if config.head != "embedding" or pooling:
            model, placed = lm.with_head(
                model, params, "embedding", **({"pooling": pooling} if pooling else {})
            )
        self._whole = jax.device_put(placed, NamedSharding(self._mesh, P()))
        self._first = jax.tree.map(lambda x: x.addressable_data(0), self._whole)
        self._embed = jax.jit(partial(_unit_vectors, model, self.dim))
        options = {"query_prefix": query_prefix, "passage_prefix": passage_prefix, "dim": self.dim}
        options |= {"pooling": model.config.pooling, "dtype": config.dtype}
        self.fingerprint, self.former_fingerprint = _fingerprints(
            config, params, longest, options, tokenizer
        )

    @classmethod
    def from_hf(
        cls,
        path_or_id,
        max_length: int | None = None,
        *,
        pooling: str | None = None,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        dim: int | None = None,
        dtype: str = "float32",
        mesh: Mesh | None = None,
    ) -> "Encoder":
        """Load an encoder or decoder from a directory or hub id.

        Pooling, length and prompts of queries and passages default to its sentence-transformers
        files. dtype: "bfloat16" computes with half the memory. Raises ValueError (lm.WeightsError)
        when it cannot be read, RetrievalError for unsupported modules, poolings and options.
        """
        options: dict[str, Any] = {
            "max_length": max_length,
            "query_prefix": query_prefix,
            "passage_prefix": passage_prefix,
        }
        if None in options.values():
            options = sentence_transformers.said(path_or_id) | {
                name: value for name, value in options.items() if value is not None
            }
        options |= {
            name: value for name, value in (("pooling", pooling), ("dim", dim)) if value is not None
        }
        try:
            model, params = lm.from_hf(path_or_id, dtype)
        except lm.ConfigError as error:
            raise RetrievalError(str(error)) from error
        path = Path(path_or_id)
        source = sentence_transformers.remembered(
            str(path.resolve()) if path.exists() else str(path_or_id), {**options, "dtype": dtype}
        )
        return cls(
            model, params, lm.load_tokenizer(path_or_id), source=source, mesh=mesh, **options
        )

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Embed texts. Raises RetrievalError when given one string instead of a list."""
        return self._vectors(texts, "")

    def queries(self, texts: list[str]) -> np.ndarray:
        return self._vectors(texts, self.query_prefix)

    def passages(self, texts: list[str]) -> np.ndarray:
        return self._vectors(texts, self.passage_prefix)

    def query_tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens that `queries` embeds, prefix and special tokens included."""
        return self._tokens([self.query_prefix + text for text in texts])

    def _vectors(self, texts: list[str], prefix: str) -> np.ndarray:
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise RetrievalError(
                f"expected a list of texts, got {str(texts)[:40]!r}: put it in a list"
            )
        texts = list(texts)
        for text in texts:
            check_unicode("a text to embed", text)
        rows = self._tokens([prefix + text for text in texts])
        inputs.check_ids(self._config, rows, self._tokenizer, "text")
        vectors = np.zeros((len(rows), self.dim), np.float32)
        pending = [
            (chosen, self._run(lm.Batch.of(tokens, segments)))
            for chosen, tokens, segments in by_length(
                rows, self._lengths, self._pad, self._mesh.size
            )
        ]
        for chosen, embedded in pending:
            vectors[chosen] = np.asarray(embedded)[: len(chosen)]
        return vectors

    def _run(self, batch: lm.Batch) -> jax.Array:
        """Return [B, dim], on the first device for up to 32 rows, else sharded over all."""
        if len(batch.tokens) <= ROWS:
            return self._embed(self._first, batch)
        return self._embed(self._whole, jax.device_put(batch, NamedSharding(self._mesh, P("rows"))))

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            texts,
            add_special_tokens=True,
            truncation=True,
            max_length=self.max_length,
            return_overflowing_tokens=True,
        )
        owners = encoded["overflow_to_sample_mapping"]
        first = {owner: part for part, owner in reversed(list(enumerate(owners)))}
        cut = len({owner for part, owner in enumerate(owners) if part != first[owner]})
        if cut:
            self.truncated += cut
            logger.warning(
                "%d of %d texts are longer than the encoder's %d tokens: their ends are not "
                "searched",
                cut,
                len(texts),
                self.max_length,
            )
        return [encoded["input_ids"][first[number]] for number in range(len(texts))]


def lengths_to(longest: int) -> tuple[int, ...]:
    """Return the padded lengths for rows of at most `longest` tokens."""
    return (*(length for length in LENGTHS if length < longest), longest)


def by_length(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], pad: int, devices: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batch rows of similar length: yield (row indices, tokens, segments).

    Tokens and segments are int32 [B, T]. T is one of `lengths`. B is 1 or 4 for few rows, 32 for up
    to 32, else 32 per device.
    """
    order = np.argsort([len(row) for row in rows], kind="stable")
    if len(rows) <= FEW_ROWS[-1]:
        lengths = [length for length in lengths if length not in FEW_SKIP or length == lengths[-1]]
    size = next((size for size in (*FEW_ROWS, ROWS) if len(rows) <= size), ROWS * devices)
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        longest = max(len(rows[i]) for i in chosen)
        length = next(length for length in lengths if length >= longest)
        tokens, segments = (
            np.full((size, length), pad, np.int32),
            np.zeros((size, length), np.int32),
        )
        for row, i in enumerate(chosen):
            tokens[row, : len(rows[i])], segments[row, : len(rows[i])] = rows[i], 1
        yield chosen, tokens, segments


def _unit_vectors(model, dim: int, params, batch) -> jax.Array:
    """Return float32 [B, dim], rows of length 1."""
    pooled = model.apply({"params": params}, batch).pooled[:, :dim]
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


def _fingerprints(config, params, max_length: int, options: dict, tokenizer) -> tuple[str, str]:
    """Return the fingerprint of an encoder, and the one that older memories hold.

    The fingerprint is a sha256 over the model's shape, options that are not the default, the tokens
    of a fixed text, and every parameter's name, shape and values (all values, up to 134 million).
    The older one covers only the outermost values.
    """
    shape = {
        name: getattr(config, name)
        for name in (
            "family",
            "vocab_size",
            "d_model",
            "n_layers",
            "n_heads",
            "d_ff",
            "activation",
            "norm_eps",
        )
    }
    usual = {
        "pooling": "mean",
        "query_prefix": "",
        "passage_prefix": "",
        "dim": config.d_model,
        "dtype": "float32",
    }
    shape |= {name: value for name, value in options.items() if value != usual[name]}
    now, former = (
        hashlib.sha256(),
        hashlib.sha256(json.dumps([shape, max_length], sort_keys=True).encode()),
    )
    now.update(
        json.dumps([shape, max_length, tokenizer(SPELLED)["input_ids"]], sort_keys=True).encode()
    )
    leaves = sorted(
        (jax.tree_util.keystr(path), value)
        for path, value in jax.tree_util.tree_leaves_with_path(params)
    )
    # Odd, as a power of two would sample the same columns again and again.
    every = sum(value.size for _, value in leaves) // HASHED | 1
    for path, value in leaves:
        flat, head = np.asarray(value).reshape(-1), f"{path} {value.shape}".encode()
        now.update(head + np.ascontiguousarray(flat[::every]).tobytes())
        former.update(head + np.concatenate([flat[:256], flat[-256:]]).astype(np.float32).tobytes())
    return f"model2-{now.hexdigest()[:32]}", f"model-{former.hexdigest()[:32]}"
