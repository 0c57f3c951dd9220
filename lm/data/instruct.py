"""Instruct data for training: files of records, spelled out by a template, tokenised and packed, once for each content and template."""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator

from lm.data import fitting, packing, records, sources
from lm.data.encoding import Encoder
from lm.data.examples import Example
from lm.data.fitting import Limits
from lm.data.packing import Packed
from lm.data.records import Read, Reading
from lm.data.templates import Template, with_examples
from lm.data.templates.template import VERSION as TEMPLATES
from lm.models.config import ConfigError

VERSION = 1  # of how records are read, encoded and laid into rows; part of the cache key
# the modules that decide the rows; their source is part of the cache key too
CODE = (
    "files",
    "sources",
    "tables",
    "records",
    "turns",
    "superni",
    "examples",
    "encoding",
    "fitting",
    "instruct",
    "packing",
    "templates",
)
EVERYTHING = Reading()

log = logging.getLogger(__name__)


def examples(read: Read, template: Template) -> Iterator[Example]:
    """The records as the template spells them. Raises DataError, naming file and line, when it has no place for one."""
    for i, record in enumerate(with_examples(read.records, template)):
        yield template.render(record, i)


def pack_examples(
    patterns: str, template: Template, tokenizer, limits: Limits, cache: str | os.PathLike, reading: Reading = EVERYTHING, *,
    part: str = "train", decoder_start: int | None = None, prompt_weight: float = 0.0,
) -> Packed:  # fmt: skip
    """The packed examples of the files, memory-mapped from `cache` where the same were packed before.

    part: "train", "held_out" or "all", see `records.read`.   decoder_start: of an encoder-decoder, whose encoder reads all that comes
    before the last answer.   prompt_weight: of the loss of a decoder's tokens that are not of an answer. The key is the content of the
    files, the tokenizer, the template's fingerprint, the versions of the code and every argument that changes the rows. Raises DataError
    and ConfigError, with file and line, for what cannot be used.
    """
    if (decoder_start is None) == bool(limits.read):
        raise ConfigError(
            "an encoder-decoder needs a length for its encoder and a decoder_start, and others neither"
        )
    files, _ = records.find(patterns)
    identity = [
        "instruct", VERSION, packing.code(*CODE), TEMPLATES, packing.VERSION, vars(limits), vars(reading), part, decoder_start,
        prompt_weight, template.fingerprint,
        sources.content_hash(files), [pathlib.Path(file).stem for file in files], packing.fingerprint(tokenizer),
    ]  # fmt: skip
    folder = pathlib.Path(cache) / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    if not folder.exists():
        read = records.read(patterns, reading, part)
        for warning in read.warnings:
            log.warning("%s", warning)
        encoded = Encoder(tokenizer, decoder_start)(examples(read, template))
        packed = fitting.pack(
            encoded,
            limits,
            patterns,
            {"bad_records": read.bad, **records.counted(read.unread)},
            prompt_weight,
        )
        packing.save(packed, folder)
    return packing.load(folder)
