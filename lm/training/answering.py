"""Generate and score answers to fixed questions during training (config.eval.generation)."""

import logging

import ml_collections

from lm.data import records, templates
from lm.data.records import Reading
from lm.evaluation import generation, scores, words
from lm.evaluation.generation import Question
from lm.generation import GenerationError
from lm.models.config import ConfigError
from lm.training import instruction

BATCH = 32  # answers generated at a time
SHOWN = 8  # answers written to samples.md

log = logging.getLogger(__name__)


def check(config: ml_collections.ConfigDict) -> None:
    """Raise ConfigError, naming the field, when config.eval.generation is invalid."""
    section, data = config.eval.generation, config.data
    for name, least in (("max_examples", 0), ("every", 0), ("max_new_tokens", 1)):
        if section[name] < least:
            raise ConfigError(
                f"eval.generation.{name}={section[name]}: expected a number of at least {least}"
            )
    if not section.files:
        if section.every:
            raise ConfigError(
                f"eval.generation.every={section.every}, and eval.generation.files names no "
                "questions; set them, or 0"
            )
        return
    metrics(config)
    if config.objective.name not in instruction.OBJECTIVES:
        raise ConfigError(
            f"eval.generation.files={section.files!r}: questions are spelled by data.template, "
            "which the objective "
            f"{config.objective.name!r} has not; leave it empty, and run python -m lm.evaluate "
            "--examples afterwards"
        )
    if section.files == instruction.HELD_OUT and not (data.hold_out and data.files):
        raise ConfigError(
            f"eval.generation.files={instruction.HELD_OUT!r} needs data.files and the tasks of "
            "data.hold_out"
        )


def metrics(config: ml_collections.ConfigDict) -> dict:
    """Name -> metric for eval.generation.metrics.

    Raises ConfigError for an unknown metric and for a tokenizer that cannot be read.
    """
    section = config.eval.generation
    try:
        return scores.chosen(section.metrics, words.tokenize_of(section.rouge_tokenizer))
    except ValueError as error:
        raise ConfigError(f"eval.generation: {error}") from error


def doubt(config: ml_collections.ConfigDict, asked: list[Question]) -> str:
    """Warning when the metrics ignore most of the reference answers; else ''."""
    return words.doubt(
        [question.references for question in asked],
        [*metrics(config)],
        config.eval.generation.rouge_tokenizer,
    )


def questions(config: ml_collections.ConfigDict, run) -> list[Question]:
    """Questions: eval.generation.max_examples records, evenly spaced over all files.

    Raises ConfigError and DataError.
    """
    section, data = config.eval.generation, config.data
    if not section.files:
        return []
    held_out = section.files == instruction.HELD_OUT
    reading = Reading(
        data.format, data.cap, data.hold_out if held_out else "", data.max_bad_share, config.seed
    )
    found = records.read(
        data.files if held_out else section.files, reading, "held_out" if held_out else "all"
    )
    for note in (*found.warnings, *records.notes(found, generation.unscored(found.records))):
        log.warning("eval.generation.files: %s", note)
    try:
        chosen = generation.spread(
            templates.with_examples(found.records, run.template), section.max_examples
        )
        return generation.questions(
            chosen, run.template, run.model, run.tokenizer, section.max_new_tokens
        )
    except GenerationError as error:
        raise ConfigError(f"eval.generation: {error}") from error


def answer(
    config: ml_collections.ConfigDict, run, params: dict, asked: list[Question]
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """(100 * mean of each metric and of the stop rate, by name; some answers for samples.md)."""
    budget = config.eval.generation.max_new_tokens
    given = generation.answers(
        run.model, params, run.tokenizer, asked, budget, run.template, batch_size=BATCH
    )
    found = generation.scored(asked, given, metrics(config))
    row = {f"eval/generation/{name}": 100 * float(values.mean()) for name, values in found.items()}
    shown = []
    for number in generation.spread(range(len(asked)), SHOWN):
        question, said = asked[number], given[number]
        marks = ", ".join(
            f"{name} {100 * values[number]:.0f}"
            for name, values in found.items()
            if name != "stop_rate"
        )
        end = "" if said.stopped else ", not ended"
        shown.append(
            (question.text, f" {said.text}\n\n(wanted: {question.references[0]}; {marks}{end})")
        )
    return row, shown
