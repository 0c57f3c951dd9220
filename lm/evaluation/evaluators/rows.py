"""Evaluation of the task's loss on rows of files: perplexity, or means of the loss's metrics."""

import dataclasses
import math

from lm.evaluation.evaluators.evaluator import Evaluator, Prepared, Result, Tools
from lm.evaluation.perplexity import Perplexity
from lm.models.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Rows(Evaluator):
    """The loss on held-out files, read as data.files are."""

    files: str = ""
    max_rows: int = 0  # rows that are read; 0 = all

    def check(self, config) -> None:
        if not self.files:
            raise ConfigError("files is not set: give paths or globs")
        if self.max_rows < 0:
            raise ConfigError(f"max_rows={self.max_rows}: expected 0 or more")

    def prepare(self, tools: Tools) -> Prepared:
        packed, measure = tools.rows(self.files), tools.measure

        def evaluate(params: dict, step: int) -> Result:
            return result_of(measure(params, packed, self.max_rows))

        return evaluate


def result_of(found: Perplexity | dict[str, float]) -> Result:
    """Result of a perplexity, or of means by name."""
    if isinstance(found, dict):
        return Result(found, ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    values: dict[str, float | None] = {"loss": found.loss, "perplexity": found.perplexity}
    if math.isnan(found.bits_per_byte):
        # The task does not predict every token of the text.
        return Result(values, f"loss {found.loss:.4f} over {found.tokens:,} tokens")
    error = found.bits_per_byte_stderr
    values["bits_per_byte"] = found.bits_per_byte
    values["bits_per_byte_stderr"] = error if math.isfinite(error) else None
    said = f"loss {found.loss:.4f}, {found.bits_per_byte:.4f} ± {error:.4f} bits per byte"
    return Result(values, said)
