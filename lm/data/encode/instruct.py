"""Instruct data for training: render records with a template, tokenise and pack them, and cache."""

import logging
import os
import pathlib
from collections.abc import Iterator

from lm.data.cache import cached
from lm.data.encode import fitting
from lm.data.encode.encoding import Encoder
from lm.data.encode.fitting import Limits
from lm.data.packed import Packed
from lm.data.read import sources
from lm.data.records import reading as records
from lm.data.records.examples import Example
from lm.data.records.reading import Read, Reading
from lm.data.templates import Template, with_examples
from lm.models.config import ConfigError

EVERYTHING = Reading()

log = logging.getLogger(__name__)


def examples(read: Read, template: Template) -> Iterator[Example]:
    """Render the records. Raises DataError, with file and line, if the template cannot hold one."""
    for i, record in enumerate(with_examples(read.records, template)):
        yield template.render(record, i)


def pack_examples(
    patterns: str,
    template: Template,
    tokenizer,
    limits: Limits,
    cache: str | os.PathLike,
    reading: Reading = EVERYTHING,
    *,
    part: str = "train",
    decoder_start: int | None = None,
    prompt_weight: float = 0.0,
) -> Packed:
    """Pack the examples of the files, or memory-map them from `cache`.

    part: "train", "held_out", "holdout" or "all"; see `records.read`.
    decoder_start: start token of an encoder-decoder, whose encoder reads everything before the last
    answer.
    prompt_weight: loss weight of a decoder's tokens outside answers.
    The cache key covers the content of the files, the tokenizer, the template's fingerprint, the
    code's version and every argument that affects the rows.
    Raises DataError and ConfigError, with file and line, for unusable data.
    """
    if (decoder_start is None) == bool(limits.read):
        raise ConfigError(
            "an encoder-decoder needs a length for its encoder and a decoder_start, and others "
            "neither"
        )
    files, _ = records.find(patterns)
    key = [
        "instruct",
        vars(limits),
        vars(reading),
        part,
        decoder_start,
        prompt_weight,
        template.fingerprint,
        sources.content_hash(files),
        [pathlib.Path(file).stem for file in files],
    ]

    def make() -> Packed:
        read = records.read(patterns, reading, part)
        for warning in read.warnings:
            log.warning("%s", warning)
        encoded = Encoder(tokenizer, decoder_start)(examples(read, template))
        counts = {"bad_records": read.bad, **records.counted(read.unread)}
        return fitting.pack(encoded, limits, patterns, counts, prompt_weight)

    return cached(cache, key, tokenizer, make)
