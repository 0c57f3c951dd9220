"""Keep facts out of the weights: texts with calls of a fact memory, whose values have no loss.

LMLM (Zhao et al. 2025, section 3): before each fact that a text states, a call names its entity and
relation, and the memory gives the value. The value in the call is read and never predicted, so that
the mention after it is learned as a copy. With `swap` the call and its mention have another value
of the same relation, and with `dropout` the memory knows nothing and the mention has no loss.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from lm.data import packing
from lm.data.cache import cached
from lm.data.encode import plain_text
from lm.data.packed import Packed
from lm.data.read import sources
from lm.data.read.sources import DataError
from lm.data.records import labels as labelled
from lm.data.records.turns import BadRecord
from lm.models.config import ConfigError
from lm.tasks.task import Tools
from lm.tasks.text import TextTask
from retrieval.doors import calls
from retrieval.sanitising import encode_plain
from retrieval.tasks.records import code

NAMES = ("entity", "relation", "value")


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact that a text states. start: of the value in the text, in characters."""

    entity: str
    relation: str
    value: str
    start: int


@dataclasses.dataclass(frozen=True)
class Annotated:
    """A text with its facts, in order."""

    text: str
    facts: tuple[Fact, ...]
    where: str


def annotated(row: Mapping, where: str, text_field: str, facts_field: str) -> Annotated:
    """Record of a row. A value is looked for after the one before it. Raises BadRecord."""
    text, facts = row.get(text_field), row.get(facts_field)
    if not isinstance(text, str) or not text.strip():
        raise BadRecord(f"field {text_field!r} is {text!r}: expected some text")
    if not isinstance(facts, list):
        raise BadRecord(
            f"field {facts_field!r} is {facts!r}: expected a list of objects with entity, relation "
            "and value"
        )
    found: list[Fact] = []
    at = 0
    for fact in facts:
        given: Any = [fact.get(name) if isinstance(fact, Mapping) else None for name in NAMES]
        if not all(isinstance(name, str) and name.strip() for name in given):
            raise BadRecord(f"fact {fact!r}: expected an object with the texts {', '.join(NAMES)}")
        if mark := next((m for m in calls.MARKS if any(m in name for name in given)), None):
            raise BadRecord(f"fact {fact!r} contains {mark!r}, which marks calls: leave it out")
        start = text.find(given[2], at)
        if start < 0:
            raise BadRecord(
                f"fact {fact!r}: its value is not in the text"
                + (f" after character {at}: name facts in the order of their values" if at else "")
            )
        found.append(Fact(*given, start))
        at = start + len(given[2])
    return Annotated(text, tuple(found), where)


@dataclasses.dataclass(frozen=True)
class LMLM(TextTask):
    """Predict a text with calls of a fact memory, all but the values in the calls."""

    facts_field: str = "facts"  # list of {"entity", "relation", "value"}, in the order of the text
    swap: float = 0.0  # share of facts whose value is another one of the same relation
    dropout: float = 0.0  # share of facts that the memory does not know
    copies: int = 1  # times that a text is read in an epoch, each with swaps of its own

    heads: ClassVar[tuple[str, ...]] = ("causal_lm",)
    synthetic: ClassVar[bool] = False

    def check(self, config) -> None:
        super().check(config)
        for name in ("swap", "dropout"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"task.{name}={value}: expected a share of the facts, 0 to 1")
        if self.copies < 1:
            raise ConfigError(f"task.copies={self.copies}: expected a whole number, at least 1")
        if self.separator:
            raise ConfigError(
                f"task.separator={self.separator!r} divides text files, and annotated texts are "
                "records: leave it out"
            )

    def rows(self, files: str, part: str, tools: Tools, stride: int = 0) -> Packed:
        share = 0.0 if part == "all" else tools.holdout_share
        trained = part == "train"
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        key: list[Any] = [
            "lmlm",
            code("doors", "tasks"),
            options,
            trained,
            tools.length,
            tools.seed,
        ]
        key += [tools.max_bad_share, share, part == "holdout"]
        key += [sources.content_hash(sources.find_files(files))]

        def make() -> Packed:
            records = labelled.read(
                files,
                partial(annotated, text_field=self.field, facts_field=self.facts_field),
                max_bad_share=tools.max_bad_share,
                tally=tools.tally,
                share=share,
                held_out=part == "holdout",
            )
            drawn = self.drawn(records, tools.seed) if trained else (as_it_is(r) for r in records)
            return packed([spelled(*each, tools.tokenizer) for each in drawn], tools.length)

        return cached(tools.cache, key, tools.tokenizer, make)

    def drawn(
        self, records: Sequence[Annotated], seed: int
    ) -> Iterator[tuple[Annotated, list[str | None]]]:
        """Records with a value for each fact; None where the memory does not know it."""
        others: dict[str, list[str]] = {}
        for fact in (fact for record in records for fact in record.facts):
            known = others.setdefault(fact.relation, [])
            if fact.value not in known:
                known.append(fact.value)
        for copy, (number, record) in itertools.product(range(self.copies), enumerate(records)):
            rng = np.random.default_rng([seed, copy, number])
            values: list[str | None] = []
            for fact in record.facts:
                lost, swapped, at = rng.random(), rng.random(), rng.random()
                choice = [value for value in others[fact.relation] if value != fact.value]
                if lost < self.dropout:
                    values.append(None)
                elif swapped < self.swap and choice:
                    values.append(choice[int(at * len(choice))])
                else:
                    values.append(fact.value)
            yield record, values


def as_it_is(record: Annotated) -> tuple[Annotated, list[str | None]]:
    return record, [fact.value for fact in record.facts]


def spelled(
    record: Annotated, values: Sequence[str | None], tokenizer
) -> tuple[np.ndarray, np.ndarray, int]:
    """(tokens int32 [n], weights uint8 [n], UTF-8 bytes) of a text with these values.

    The first token starts the document. Weights are 0 at values in calls and at the ends of calls,
    which the memory gives, and at mentions of what it does not know.
    """
    ids, weights, written, at = [plain_text.start_token(tokenizer)], [0], "", 0

    def add(tokens: Sequence[int], weight: int) -> None:
        ids.extend(tokens)
        weights.extend([weight] * len(tokens))

    for fact, value in zip(record.facts, values, strict=True):
        before = record.text[at : fact.start]
        add(encode_plain(tokenizer, before.rstrip(" ")), 1)
        add(calls.asked(tokenizer, fact.entity, fact.relation), 1)
        add(calls.given(tokenizer, calls.UNKNOWN if value is None else value), 0)
        mention = before[len(before.rstrip(" ")) :] + (fact.value if value is None else value)
        add(encode_plain(tokenizer, mention), value is not None)
        written += before.rstrip(" ") + mention
        at = fact.start + len(fact.value)
    add(encode_plain(tokenizer, record.text[at:]), 1)
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-text token, after which a text would end")
    add([tokenizer.eos_token_id], 1)
    size = len(f"{written}{record.text[at:]}".encode())
    return np.array(ids, np.int32), np.array(weights, np.uint8), size


def packed(texts: Sequence[tuple[np.ndarray, np.ndarray, int]], length: int) -> Packed:
    """Rows of `length` tokens; a text longer than a row is divided."""
    windows = [
        (number, start, min(length, len(ids) - 1 - start))
        for number, (ids, _, _) in enumerate(texts)
        for start in range(0, len(ids) - 1, length)
    ]
    sizes = np.array([(size, 0) for *_, size in windows])
    tokens = packing.token_dtype(max(int(ids.max()) for ids, *_ in texts))

    def pieces() -> Iterator[packing.Piece]:
        for number, start, size in windows:
            ids, weights, _ = texts[number]
            part = slice(start + 1, start + 1 + size)
            yield {
                "tokens": ids[start : start + size],
                "targets": ids[part],
                "weights": weights[part],
            }

    return packing.pack(
        pieces(),
        sizes,
        packing.rows_of(sizes, (length, 0)),
        (length, 0),
        {"tokens": tokens, "targets": tokens, "weights": np.uint8},
        [number for number, *_ in windows],
        [size for *_, size in texts],
    )
