"""Questions with answers, read from files, and what a memory finds for them."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lm.data.records.turns import BadRecord
from lm.models.config import ConfigError, ModelConfig
from retrieval.encoders.encoder import Encoder
from retrieval.memory import Memory
from retrieval.passages import Hit
from retrieval.sanitising import encode_plain

LONGEST_QUERY = 64  # tokens of a question that the retriever reads


@dataclasses.dataclass(frozen=True)
class Asking:
    """A question and its answer. where: file and line."""

    question: str
    answer: str
    where: str


def asking(row: Mapping, where: str, question: str, answer: str) -> Asking:
    """Record of a row. question, answer: its fields.

    An answer is a text, a list of texts, or SQuAD's `answers`; the first is trained. Raises
    BadRecord.
    """
    for name in (question, answer):
        if name not in row:
            raise BadRecord(f"field {name!r} is missing; it has {', '.join(sorted(row))}")
    found = row[answer]
    if isinstance(found, Mapping):
        found = found.get("text")
    if isinstance(found, list):
        first = found[0] if found else ""
        found = first.get("text") if isinstance(first, Mapping) else first
    for name, text in ((question, row[question]), (answer, found)):
        if not isinstance(text, str) or not text.strip():
            raise BadRecord(f"field {name!r} is {text!r}: expected some text")
    assert isinstance(found, str)
    return Asking(row[question], " ".join(found.split()), where)


def code(*folders: str) -> str:
    """Hash of the source of some folders of this package, for the names of cached rows."""
    total = hashlib.sha256()
    for folder in folders:
        for file in sorted((Path(__file__).parents[1] / folder).glob("*.py")):
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


def answer_tokens(tokenizer, model: ModelConfig, text: str, apart: bool) -> list[int]:
    """Tokens of an answer and of its end, as `retrieval.reading.reader` reads it."""
    chats = bool(tokenizer.chat_template)
    ids = encode_plain(tokenizer, text if apart or chats else f" {text}")
    ends = [i for i in (tokenizer.eos_token_id, *model.eos_token_ids) if i is not None]
    if not apart and not chats:
        ends = [*encode_plain(tokenizer, "\n")[-1:], *ends]
    if not ends:
        raise ConfigError("the tokenizer has no end-of-text token, after which an answer would end")
    return [*ids, ends[0]]


def query_rows(encoder: Encoder, questions: list[str]) -> np.ndarray:
    """Tokens of questions for the retriever, int32 [N, Q] from 1, 0 = padding."""
    tokens = np.zeros((len(questions), LONGEST_QUERY), np.int32)
    for row, ids in zip(tokens, encoder.query_tokens(questions), strict=True):
        row[: len(ids)] = np.array(ids[:LONGEST_QUERY]) + 1
    return tokens


def for_retriever(
    records: list[Asking], hits: list[list[Hit]], k: int, memory: Memory, encoder: Encoder
) -> dict[str, np.ndarray]:
    """Tokens of the questions, [N, Q] from 1 with 0 = padding, and vectors [N, K, D]."""
    tokens = query_rows(encoder, [record.question for record in records])
    known, vectors = memory.vectors({hit.id for found in hits for hit in found})
    place = {id: i for i, id in enumerate(known)}
    found = np.zeros((len(records), k, vectors.shape[1]), np.float32)
    for i, of_question in enumerate(hits):
        for j, hit in enumerate(of_question):
            found[i, j] = vectors[place[hit.id]]
    return {"query_tokens": tokens, "passage_vectors": found}
