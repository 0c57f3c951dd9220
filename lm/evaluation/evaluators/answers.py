"""Scores of answers to fixed questions, rendered by the template of the run."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from lm import tasks
from lm.data import templates
from lm.data.records import reading as records
from lm.evaluation import generation, scores, words
from lm.evaluation.evaluators.evaluator import Evaluator, Prepared, Result, Tools
from lm.generation import GenerationError
from lm.models.config import ConfigError

BATCH = 32  # answers generated at a time
SHOWN = 8  # answers written to samples.md

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answers(Evaluator):
    """Answers to questions: scores, the stop rate, and some for samples.md."""

    # Instruct data, read with task.format and task.template, or "hold_out".
    files: str = ""
    max_examples: int = 64  # evenly spaced over all; 0 = all
    max_new_tokens: int = 64  # tokens per answer
    metrics: str = generation.METRICS  # docs/evaluation.md
    # "unicode" for scripts other than Latin; or a tokenizer's folder, hub id or .gguf file.
    rouge_tokenizer: str = words.ROUGE
    beams: int = 1  # beam search with this many beams; 1 = greedy
    length_penalty: float = 1.0  # of beams: above 0 favours longer answers

    def check(self, config) -> None:
        for name, least in (("max_examples", 0), ("max_new_tokens", 1), ("beams", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: expected a number of at least {least}"
                )
        if not self.files:
            raise ConfigError("files is not set: give instruct data, or 'hold_out'")
        self._metrics()
        task = tasks.of(config)
        if not task.renders:
            raise ConfigError(
                f"files={self.files!r}: questions are rendered by a template, which the task "
                f"{task.name!r} does not have; leave it empty, and run python -m lm.evaluate "
                "--examples afterwards"
            )
        if self.files == tasks.HELD_OUT and not (task.hold_out and config.data.files):
            raise ConfigError(
                f"files={tasks.HELD_OUT!r} needs data.files and the tasks of task.hold_out"
            )

    def _metrics(self) -> Mapping[str, Any]:
        """Name -> metric. Raises ConfigError for an unknown metric or tokenizer."""
        try:
            return scores.chosen(self.metrics, words.tokenize_of(self.rouge_tokenizer))
        except ValueError as error:
            raise ConfigError(f"metrics={self.metrics!r}: {error}") from error

    def prepare(self, tools: Tools) -> Prepared:
        """Read the questions. Raises ConfigError and DataError."""
        found = tools.records(self.files)
        for note in (
            *found.warnings,
            *records.notes(found, generation.unscored(found.records)),
        ):
            log.warning("%s: %s", self.files, note)
        template: Any = tools.template  # ensured by `check`
        try:
            chosen = generation.spread(
                templates.with_examples(found.records, template), self.max_examples
            )
            asked = generation.questions(
                chosen, template, tools.model, tools.tokenizer, self.max_new_tokens
            )
        except GenerationError as error:
            raise ConfigError(str(error)) from error
        metrics = self._metrics()
        references = [question.references for question in asked]
        if doubt := words.doubt(references, [*metrics], self.rouge_tokenizer):
            tools.say(f"{self.files}: {doubt}")

        def evaluate(params: dict, step: int) -> Result:
            given = generation.answers(
                tools.model,
                params,
                tools.tokenizer,
                asked,
                self.max_new_tokens,
                template,
                batch_size=BATCH,
                beams=self.beams,
                length_penalty=self.length_penalty,
            )
            return _result(asked, given, generation.scored(asked, given, metrics))

        return evaluate


def _result(asked, given, found) -> Result:
    """100 * the mean of each metric and of the stop rate, and some answers with their scores."""
    values = {name: 100 * float(scored.mean()) for name, scored in found.items()}
    said = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in values.items())
    said += "".join(f"\n{name}: {value}" for name, value in scores.signatures(found).items())
    shown = []
    for number in generation.spread(range(len(asked)), SHOWN):
        question, answer = asked[number], given[number]
        marks = [
            f"{name} {100 * scored[number]:.0f}" for name, scored in generation.each(found).items()
        ]
        end = [] if answer.stopped else ["not ended"]
        said_of = ", ".join([*marks, *end])
        wanted = f"(wanted: {question.references[0]}{'; ' if said_of else ''}{said_of})"
        shown.append((question.text, f" {answer.text}\n\n{wanted}"))
    return Result(values, f"{len(asked)} answers: {said}", shown)
