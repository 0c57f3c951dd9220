"""What a datastore was made with: the model, the tokenizer and the tap of its keys."""

import dataclasses
import hashlib
import json

import jax
import numpy as np

from lm.models import LanguageModel, ModelConfig, separate
from lm.models.taps import TAPS
from retrieval.errors import RetrievalError

# Fields of a config that change no result beyond rounding, or only a run.
COMPUTED = {
    "layers": "separate",
    "attention_backend": "dense",
    "remat": "none",
    "ssm_chunk": 0,
    "dropout": 0.0,
    "initializer_range": 0.02,
}
UNREAD = ("padding", "truncation", "post_processor")  # of a tokenizer: they encode no text


@dataclasses.dataclass(frozen=True)
class Identity:
    """Digests of a model and a tokenizer, 16 hex digits each, and the tap of the keys."""

    model: str
    tokenizer: str
    tap: str
    width: int  # of the tap's vectors

    @classmethod
    def of(cls, model: LanguageModel, params: dict, tokenizer, tap: str = "") -> "Identity":
        """tap: of `lm.models.taps.TAPS`; "" = `default_tap`. Raises RetrievalError."""
        c = model.config
        tap = checked_tap(c, tap)
        return cls(model_digest(model, params), tokenizer_digest(tokenizer), tap, c.d_model)

    def check(self, other: "Identity", place) -> None:
        """Raise RetrievalError, naming what differs, unless `other` is this identity."""
        for name, what in (
            ("tap", "keys of the tap"),
            ("tokenizer", "tokens of the tokenizer"),
            ("model", "keys of the model"),
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise RetrievalError(
                    f"the datastore {place} holds {what} {mine}, and this is the {name} {theirs}: "
                    f"use the {name} it was built with, or build it again"
                )


def default_tap(c: ModelConfig) -> str:
    """The input of the last feed-forward; of a model without any, the final hidden states."""
    return "ffn_input" if c.d_ff else "hidden"


def checked_tap(c: ModelConfig, tap: str) -> str:
    """The tap, or the default for "". Raises RetrievalError for one that the model has not."""
    tap = tap or default_tap(c)
    if tap not in TAPS:
        raise RetrievalError(f"tap={tap!r}: expected {' or '.join(TAPS)}")
    if tap == "ffn_input" and not c.d_ff:
        raise RetrievalError(
            f"tap='ffn_input': the layers of this {c.family} model have no feed-forward: use "
            "'hidden', the final hidden states"
        )
    return tap


def model_digest(model: LanguageModel, params: dict) -> str:
    """Hash of the configuration and of every parameter, however the layers are stored."""
    model, params = separate(model, params)
    found = hashlib.sha256(repr(model.config.replace(**COMPUTED)).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.ascontiguousarray(jax.device_get(leaf))
        name = jax.tree_util.keystr(path)
        found.update(f"{name} {values.shape} {values.dtype}".encode())
        found.update(values.reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


def tokenizer_digest(tokenizer) -> str:
    """Hash of what turns text into token ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = (
        tokenizer.get_vocab()
        if backend is None
        else {k: v for k, v in json.loads(backend.to_str()).items() if k not in UNREAD}
    )
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    text = json.dumps([ends, described], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
