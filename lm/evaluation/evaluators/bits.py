"""Bits per byte of continuations of text, whatever the model's tokenizer and task."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from lm.evaluation.evaluators import probe
from lm.evaluation.evaluators.condition import Book, Question
from lm.evaluation.evaluators.probe import Probe, Values


@dataclasses.dataclass(frozen=True)
class Bits(Probe):
    """Bits per byte of each row's completion after its prompt. Rows: prompt, completion."""

    query: int = 32  # words at the end of a prompt that a memory is searched for

    needs: ClassVar[tuple[str, ...]] = ("prompt", "completion")

    def measure(self, book: Book, rows: Sequence[dict]) -> tuple[Values, str]:
        asked = [
            (Question(row["prompt"], " ".join(row["prompt"].split()[-self.query :])), text)
            for row in rows
            for text in (row["completion"],)
        ]
        bits = [-float(each.sum()) / math.log(2) for each in book.log_probs(asked)]
        sizes = [len(row["completion"].strip().encode()) for row in rows]
        values = probe.ratio("bits_per_byte", bits, sizes)
        return values, f"{values['bits_per_byte']:.4f} bits per byte of {len(rows)} texts"
