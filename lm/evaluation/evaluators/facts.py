"""Facts: is the right answer the most probable of several, and is it what the model writes?"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from lm.data.read.sources import DataError
from lm.evaluation.accuracy import normalise
from lm.evaluation.evaluators import probe
from lm.evaluation.evaluators.condition import Book, Question
from lm.evaluation.evaluators.probe import Probe, Values


@dataclasses.dataclass(frozen=True)
class Facts(Probe):
    """Shares of facts that are ranked first and that are written, by group and over "all".

    Rows: prompt, answer, candidates (wrong answers of the same kind), group (such as a range of
    popularity; optional). Candidates are ranked by the log-likelihood of their tokens.
    """

    write: bool = True  # also write the answers, greedily: GROUP_exact

    needs: ClassVar[tuple[str, ...]] = ("prompt", "answer", "candidates")

    def measure(self, book: Book, rows: Sequence[dict]) -> tuple[Values, str]:
        questions = [Question(row["prompt"]) for row in rows]
        options = [_options(row) for row in rows]
        asked = [(q, text) for q, each in zip(questions, options, strict=True) for text in each]
        scores = iter(float(each.sum()) for each in book.log_probs(asked))
        ranks = []
        for each in options:
            own, *others = [next(scores) for _ in each]
            ranks.append(1 + sum(other >= own for other in others))
        found = {"": np.array(ranks) == 1}
        if self.write:
            found["_exact"] = np.array(self._written(book, questions, rows))
        groups = np.array([str(row.get("group", "")) for row in rows])
        values = probe.mean("reciprocal_rank", [1 / rank for rank in ranks])
        for suffix, hits in found.items():
            for group in dict.fromkeys(g for g in groups.tolist() if g):
                values |= probe.share(group + suffix, hits[groups == group])
            values |= probe.share("all" + suffix, hits)
        said = f"{len(rows)} facts: {values['all']:.1%} ranked first"
        return values, said + (f", {values['all_exact']:.1%} written" if self.write else "")

    def _written(self, book: Book, questions: Sequence[Question], rows) -> list[bool]:
        most = max(
            len(book.continuation(row["answer"], question))
            for row, question in zip(rows, questions, strict=True)
        )
        texts = book.write(questions, most + 1)  # one more token, which may end a longer word
        pairs = [
            (normalise(text), normalise(row["answer"]))
            for text, row in zip(texts, rows, strict=True)
        ]
        return [f"{text} ".startswith(f"{answer} ") for text, answer in pairs]


def _options(row: dict) -> list[str]:
    """The answer and the other candidates. Raises DataError where there are none."""
    others = [text for text in row["candidates"] if text != row["answer"]]
    if not others:
        raise DataError(f"{row['prompt']!r}: candidates has no other answer to rank")
    return [row["answer"], *others]
