"""Prompts of a policy: records with a text to answer, and what its rewards need to know."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lm.data.encode.encoding import Encoder
from lm.data.packed import Packed
from lm.data.read import sources
from lm.data.read.sources import DataError
from lm.data.records.examples import Record
from lm.models.config import ConfigError
from lm.tasks.task import Tools

NAMED = 3  # long prompts that a message names


@dataclasses.dataclass(frozen=True)
class Prompts(Packed):
    """One prompt a row, with the record that it comes from.

    ids: tokens of each prompt, those of the encoder in an encoder-decoder.
    """

    records: tuple[Mapping[str, Any], ...] = ()
    texts: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()


def records(files: str, part: str, tools: Tools) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, record) of a part: "train", "holdout" (data.holdout_share) or "all"."""
    named = sources.find_files(files)
    for where, record in sources.records(named, max_bad_share=tools.max_bad_share):
        if part != "all" and tools.holdout_share:
            held = sources.is_held_out(content_of(record), tools.holdout_share)
            if held != (part == "holdout"):
                continue
        yield where, record


def content_of(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, default=str)


def text_of(where: str, record: Mapping[str, Any], field: str) -> str:
    """The prompt of a record. Raises DataError, with file and line, for one without."""
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{where}: the field {field!r} is {text!r}, expected a text; set task.prompt_field"
        )
    return text


def read(
    files: str, part: str, tools: Tools, field: str, most: int, max_long: float = 0.0
) -> Prompts:
    """The prompts in `field` of the records, rendered by the run's template.

    part: as in `records`. most: tokens of a prompt; up to the share `max_long` of longer ones are
    left out. Raises DataError, with file and line.
    """
    start = tools.model.decoder_start_token_id if tools.model.encoder_layers else None
    encoder = Encoder(tools.tokenizer, start)
    assert tools.template is not None  # set by the task's `prepare`
    found, long, total = [], [], 0
    for where, record in records(files, part, tools):
        text = text_of(where, record, field)
        total += 1
        ids = encoder.prompt(tools.template.prompt(Record(instruction=text, source=where)))
        if len(ids) > most:
            long.append(f"{where}: {len(ids)}")
        else:
            found.append((record, text, tuple(ids), content_of(record)))
    if len(long) > max_long * total:
        raise DataError(
            f"{len(long):,} of {total:,} prompts have more than {most} tokens, more than "
            f"task.max_long={max_long:g} allows ({'; '.join(long[:NAMED])}); raise length, or "
            "lower task.new_tokens"
        )
    if not found:
        of = "" if part == "all" else f" that is {part}"
        why = f": all {total:,} have more than {most} tokens; raise length" if long else ""
        raise DataError(f"{files} holds no prompt{of}{why}")
    return packed(found, tools.length, {"long_prompts": len(long)} if long else {})


def packed(found: list, length: int, counts: Mapping[str, int]) -> Prompts:
    """Rows of prompts. found: (record, text, tokens, content, whose hash names the data set)."""
    records, texts, ids, contents = zip(*found, strict=True)
    tokens, segments = (np.zeros((len(ids), length), np.int32) for _ in range(2))
    for row, prompt in enumerate(ids):
        tokens[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
    of = [list(hashlib.sha256(one.encode()).digest()[:16]) for one in contents]
    number = np.arange(len(ids), dtype=np.int32)
    return Prompts(
        tokens,
        tokens,
        segments.astype(np.uint16),
        number,
        np.ones_like(number),
        number,
        np.array([len(text.encode()) for text in texts], np.int64),
        {"record_hash": np.array(of, np.uint8)},  # so that a changed answer is another data set
        counts,
        records,
        texts,
        ids,
    )


def checked(rows: Any) -> Prompts:
    """The rows, if they are prompts. Raises ConfigError for those of another task."""
    if not isinstance(rows, Prompts):
        raise ConfigError(
            f"data.mixture gives {type(rows).__name__}: a policy reads prompts of data.files alone"
        )
    return rows
