"""Minimal pairs: is the acceptable sentence more probable than the other (BLiMP)?"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from lm.evaluation.evaluators import probe
from lm.evaluation.evaluators.condition import Book, Question
from lm.evaluation.evaluators.probe import Probe, Values


@dataclasses.dataclass(frozen=True)
class Pairs(Probe):
    """Share of pairs whose acceptable sentence is the more probable (Warstadt et al. 2020).

    Rows: sentence_good, sentence_bad, UID (the paradigm; optional), as BLiMP's files. What the two
    begin with is read as the prompt; in a model of the whole text, it cancels. The interval
    resamples paradigms.
    """

    needs: ClassVar[tuple[str, ...]] = ("sentence_good", "sentence_bad")

    def measure(self, book: Book, rows: Sequence[dict]) -> tuple[Values, str]:
        asked = []
        for row in rows:
            good, bad = (row[name].split() for name in self.needs)
            same = [one == other for one, other in zip(good, bad, strict=False)]
            # Both go on after what they begin with.
            begin = good[: min([*same, False].index(False), len(good) - 1, len(bad) - 1)]
            both = " ".join(word for word in good if word in bad)
            question = Question(" ".join(begin), both or row["sentence_good"])
            asked += [(question, " ".join(words[len(begin) :])) for words in (good, bad)]
        scores = [float(each.sum()) for each in book.log_probs(asked)]
        hits = [good > bad for good, bad in zip(scores[::2], scores[1::2], strict=True)]
        values = probe.mean("accuracy", hits, [str(row.get("UID", "")) for row in rows])
        return values, f"{len(rows)} pairs: {values['accuracy']:.1%} right"
