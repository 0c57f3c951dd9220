"""Packed rows, kept in a folder that is named by a hash of everything that affects them."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers

from lm.data.packed import Packed, load, save


def cached(
    cache: str | os.PathLike, key: Sequence[Any], tokenizer, make: Callable[[], Packed]
) -> Packed:
    """Memory-map rows from `cache`, or make and save them first.

    key: JSON values of all that affects the rows, beside the tokenizer and the code of lm.data:
    contents of files (`sources.content_hash`) and options.
    """
    identity = json.dumps([code(), fingerprint(tokenizer), *key])
    folder = pathlib.Path(cache) / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if not folder.exists():
        save(make(), folder)
    return load(folder)


@functools.cache
def code() -> str:
    """Hash of the source of lm.data, and of the version of the tokenizers library."""
    total = hashlib.sha256(tokenizers.__version__.encode())
    folder = pathlib.Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        total.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def fingerprint(tokenizer) -> str:
    """Hash of everything in the tokenizer that affects tokenisation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = (
        backend.to_str()
        if backend is not None
        else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )
    ids = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id} "
    return hashlib.sha256((ids + described).encode()).hexdigest()
