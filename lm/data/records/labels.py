"""Read labelled records: texts or pairs with a label, tagged words, questions, groups of texts.

JSONL, JSON, Parquet and data sets as in lm/data/read/sources.py; CSV and TSV with a header line;
questions also in SQuAD's nested JSON.
"""

import dataclasses
import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm.data.read import sources
from lm.data.read.files import RECORDS
from lm.data.read.sources import DataError, Row, Tally
from lm.data.records.turns import BadRecord
from lm.models.config import ModelConfig


def class_names(c: ModelConfig) -> tuple[str, ...]:
    """Names of a model's labels; default: transformers' `LABEL_0`, `LABEL_1`, ..."""
    return c.label_names or tuple(f"LABEL_{i}" for i in range(c.n_labels))


@dataclasses.dataclass(frozen=True)
class Text:
    """Text or pair with its label: a class name, a class number, or a value."""

    text: str
    pair: str
    label: str | int | float
    where: str


@dataclasses.dataclass(frozen=True)
class Words:
    """Words with as many tags, each a name or a number."""

    words: tuple[str, ...]
    tags: tuple[str | int, ...]
    where: str


@dataclasses.dataclass(frozen=True)
class Question:
    """Question about a context. answers: (index of the first character in the context, text).

    The first answer is trained; all count as correct.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...]
    where: str


@dataclasses.dataclass(frozen=True)
class Group:
    """texts: an anchor, its positive (the anchor itself if records have none), and negatives."""

    texts: tuple[str, ...]
    where: str


Record = Text | Words | Question | Group
# (row, where) -> Record, or a record of another kind; raises BadRecord
Make = Callable[[Mapping, str], Any]


def read(
    patterns: str,
    make: Make,
    *,
    names: Sequence[str] = (),
    max_bad_share: float = 0.0,
    tally: Tally | None = None,
    share: float = 0.0,
    held_out: bool = False,
) -> list[Any]:
    """Read the records of the files, in order: what `make` makes of each row.

    names: the known labels; others make a record bad. A record is bad if it lacks a field, has an
    empty text, an unknown label, or an answer that is not at its index. Up to the share
    `max_bad_share` of bad records are left out, counted and warned about; more raise DataError,
    with file and line. So do files without a record.
    share: share of the records that is held out, selected by a hash of their content. held_out:
    read these instead of the others.
    """
    tally = Tally() if tally is None else tally
    found = []
    for file in sources.find_files(patterns):
        for row in _rows(file, tally):
            record = None
            try:
                if row.problem or not isinstance(row.value, dict):
                    raise BadRecord(
                        row.problem or f"it is {type(row.value).__name__}, expected an object"
                    )
                record = make(row.value, row.where)
                for label in labels_of(record) if names else ():
                    number(label, names)
            except BadRecord as problem:
                row = Row(row.where, problem=str(problem))
            if tally.count(row, max_bad_share) and (
                not share or sources.is_held_out(_content(row.value), share) == held_out
            ):
                found.append(record)
    tally.close(max_bad_share)
    if not found:
        which = f" with data.holdout_share={share:g}" if share else ""
        raise DataError(f"{patterns} holds no record to learn from or to score{which}")
    return found


def _content(row: Mapping) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def unlabelled(
    patterns: str, field: str = "text", pair: str = "", as_words: bool = False
) -> list[tuple[Text | Words, Any]]:
    """Read records without labels: [(Text with the label 0, its "id" or None)].

    as_words: read Words with the tags 0 instead, from a list or a text with spaces.

    Every line of a plain text file is a record. Raises DataError, with file and line, for a record
    without the field or with an empty text.
    """
    tally = Tally()
    found = []
    for file in sources.find_files(patterns):
        plain = sources.kind(file) not in RECORDS and not file.startswith(sources.SETS)
        for row in _rows(file, tally, "\n"):
            if plain and not row.value[sources.TEXT].strip():
                continue
            try:
                if row.problem or not isinstance(row.value, dict):
                    raise BadRecord(
                        row.problem or f"it is {type(row.value).__name__}, expected an object"
                    )
                name, number = sources.TEXT if plain else field, row.value.get("id")
                if as_words:
                    of = _words_of(row.value, name)
                    found.append((Words(of, (0,) * len(of), row.where), number))
                    continue
                second = _string(row.value, pair) if pair else ""
                found.append((Text(_string(row.value, name), second, 0, row.where), number))
            except BadRecord as problem:
                raise DataError(f"{row.where}: {problem}") from None
    if not found:
        raise DataError(f"{patterns} holds no text to label")
    return found


def names_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Names of all labels, sorted; numbers by value. Raises DataError for a single label."""
    labels = {label for record in records for label in labels_of(record)}
    if all(isinstance(label, int) for label in labels):
        found = tuple(map(str, sorted(labels)))
    else:
        found = tuple(sorted(map(str, labels)))
    if len(found) < 2:
        raise DataError(
            f"every record has the label {found[0]!r}: there is nothing to tell apart; check the "
            "files and task.label_field"
        )
    return found


def labels_of(record: Record) -> tuple:
    """Labels of a record: one for a text, one per word, none for questions and groups."""
    if isinstance(record, Text):
        return (record.label,)
    return record.tags if isinstance(record, Words) else ()


def number(label: str | int | float, names: Sequence[str]) -> int:
    """Index of a label in `names`; a number that is not a name is the index itself.

    Raises BadRecord (in `read`) for an unknown label.
    """
    if str(label) in names:
        return names.index(str(label))
    if str(label).isdecimal() and int(label) < len(names):
        return int(label)
    raise BadRecord(
        f"the label {label!r} is unknown; known are "
        f"{', '.join(names[:20])}{', ...' * (len(names) > 20)}"
    )


def _rows(file: str, tally: Tally, separator: str = "") -> Iterator[Row]:
    for row in sources.rows(file, separator, tally):
        yield from (
            _unnested(row) if isinstance(row.value, dict) and "paragraphs" in row.value else [row]
        )


def _unnested(row: Row) -> Iterator[Row]:
    """Questions of a SQuAD article."""
    paragraphs = row.value["paragraphs"]
    for i, paragraph in enumerate(paragraphs if isinstance(paragraphs, list) else [paragraphs], 1):
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            yield Row(
                f"{row.where}, paragraph {i}",
                problem="expected an object with 'context' and a list 'qas'",
            )
            continue
        for question in paragraph["qas"]:
            asked = question if isinstance(question, dict) else {}
            where = f"{row.where}, paragraph {i}, question {asked.get('id', '?')}"
            yield Row(
                where, {name: paragraph[name] for name in ("context",) if name in paragraph} | asked
            )


def text(row: Mapping, where: str, field: str, pair: str, label: str, regression: bool) -> Text:
    """Text, or pair of texts, with its label; with `regression` the label is a number."""
    value = _got(row, label)
    if regression:
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise BadRecord(f"the label {value!r} is no number, as task.regression asks") from None
        if not math.isfinite(value):
            raise BadRecord(f"the label {value!r} is not finite")
    else:
        value = _label(value)
    return Text(_string(row, field), _string(row, pair) if pair else "", value, where)


def words(row: Mapping, where: str, field: str, label: str) -> Words:
    """Words with their tags."""
    given, tags = _list(row, field), _list(row, label)
    if len(given) != len(tags):
        raise BadRecord(
            f"{len(given)} words in {field!r} and {len(tags)} tags in {label!r}: expected "
            "as many, and more than none"
        )
    return Words(_words_of(row, field), tuple(map(_label, tags)), where)


def _words_of(row: Mapping, name: str) -> tuple[str, ...]:
    words = _list(row, name)
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise BadRecord(f"field {name!r} holds no word, an empty word, or what is no text")
    return tuple(words)


def _list(row: Mapping, name: str) -> list:
    values = _got(row, name)
    values = values.split() if isinstance(values, str) else values
    if not isinstance(values, list):
        raise BadRecord(
            f"field {name!r} is {type(values).__name__}, expected a list, "
            "or a text with spaces between its words"
        )
    return values


def question(row: Mapping, where: str) -> Question:
    """Question with SQuAD's fields: question, context, answers."""
    asked, context, answers = (
        _string(row, "question"),
        _string(row, "context"),
        _got(row, "answers"),
    )
    if isinstance(answers, dict):  # of lists, as in Hugging Face's data sets
        starts, texts = answers.get("answer_start"), answers.get("text")
        if not isinstance(starts, list) or not isinstance(texts, list) or len(starts) != len(texts):
            raise BadRecord(
                "'answers' is no list of objects, nor an object of the lists 'text' and "
                "'answer_start'"
            )
        answers = [
            {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
        ]
    if not isinstance(answers, list) or not answers:
        raise BadRecord(
            "the question has no answer; such of SQuAD 2.0 cannot be learned here: leave them "
            "out, or set data.max_bad_share"
        )
    found = []
    for answer in answers:
        start, text = (
            (answer.get(name) for name in ("answer_start", "text"))
            if isinstance(answer, dict)
            else (None, None)
        )
        if not isinstance(start, int) or not isinstance(text, str) or not text.strip():
            raise BadRecord(
                f"the answer {answer!r} has no 'text' with 'answer_start', its first character"
            )
        if start < 0 or context[start : start + len(text)] != text:
            raise BadRecord(
                f"the answer {text!r} is not at character {start} of the context, where "
                f"{context[max(start, 0) :][: len(text)]!r} is"
            )
        found.append((start, text))
    return Question(str(row.get("id", where)), asked, context, tuple(found), where)


def group(row: Mapping, where: str, field: str, pair: str, negatives: str, n: int) -> Group:
    """Text, its positive (itself without `pair`), and the first `n` texts of `negatives`."""
    anchor = _string(row, field)
    positive = _string(row, pair) if pair else anchor
    given = _got(row, negatives) if n else []
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(
        isinstance(other, str) and other.strip() for other in given
    ):
        raise BadRecord(
            f"field {negatives!r} holds {given!r:.80}, expected a text or a list of "
            "texts, none empty"
        )
    if len(given) < n:
        raise BadRecord(
            f"field {negatives!r} holds {len(given)} texts, fewer than task.negatives={n}"
        )
    return Group((anchor, positive, *given[:n]), where)


def _label(value: Any) -> str | int:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise BadRecord(
            f"the label {value!r} is {type(value).__name__}, expected a name or the number of a "
            "class"
        )
    return int(value)


def _got(row: Mapping, name: str) -> Any:
    if row.get(name) is None:
        raise BadRecord(
            f"field {name!r} is null"
            if name in row
            else f"no field {name!r}; it has {', '.join(map(repr, row))}"
        )
    return row[name]


def _string(row: Mapping, name: str) -> str:
    value = _got(row, name)
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(
            f"field {name!r} is {'empty' if isinstance(value, str) else type(value).__name__}, "
            "expected a text"
        )
    return value
