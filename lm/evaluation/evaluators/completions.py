"""ROUGE-L of what a model writes after instructions, also one that was never tuned on any."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from lm.evaluation import scores
from lm.evaluation.evaluators import probe
from lm.evaluation.evaluators.condition import Book, Question
from lm.evaluation.evaluators.probe import Probe, Values
from lm.models.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Completions(Probe):
    """ROUGE-L and exact match of answers. Rows: prompt, completion, task (optional).

    The template of the run renders the prompts, if it has one. Intervals resample tasks.
    """

    max_new_tokens: int = 16  # tokens per answer

    needs: ClassVar[tuple[str, ...]] = ("prompt", "completion")

    def check(self, config) -> None:
        super().check(config)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens}: expected at least 1")

    def measure(self, book: Book, rows: Sequence[dict]) -> tuple[Values, str]:
        framed = book.tools.template is not None
        asked = [Question(row["prompt"], framed=framed) for row in rows]
        texts = book.write(asked, self.max_new_tokens)
        tasks = [str(row.get("task", "")) for row in rows]
        values: Values = {}
        for name, metric in (("rouge_l", scores.rouge_l), ("exact_match", scores.exact_match)):
            pairs = zip(texts, rows, strict=True)
            found = [100 * metric(text, row["completion"]) for text, row in pairs]
            values |= probe.mean(name, found, tasks)
        return values, f"{len(rows)} answers: ROUGE-L {values['rouge_l']:.1f}"
