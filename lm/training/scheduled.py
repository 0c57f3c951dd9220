"""Evaluators that a config asks for: those of eval, samples and evals."""

from lm import tasks
from lm.evaluation import evaluators
from lm.evaluation.evaluators import Scheduled
from lm.evaluation.evaluators.answers import Answers
from lm.evaluation.evaluators.rows import Rows
from lm.evaluation.evaluators.samples import Samples
from lm.models.config import ConfigError

ANSWERS, SAMPLES = "generation", "samples"  # names of those that config.eval and samples describe


def scheduled(config) -> list[Scheduled]:
    """Evaluators of config.eval and config.samples, and those of config.evals.

    Raises ConfigError, naming the field.
    """
    found = []
    section = config.eval.generation
    if config.eval.every:
        found += [
            Scheduled(
                name,
                config.eval.every,
                Rows(files, config.eval.max_rows),
                f"eval.data.{name}",
            )
            for name, files in held_out(config).items()
        ]
    if config.samples.prompts:
        s = config.samples
        drawn = Samples(tuple(s.prompts), s.tokens, s.temperature, s.top_p)
        found.append(Scheduled(SAMPLES, s.every, drawn, "samples"))
    if section.files:
        fields = {name: value for name, value in section.items() if name != "every"}
        found.append(Scheduled(ANSWERS, section.every, Answers(**fields), "eval.generation"))
    elif section.every:
        raise ConfigError(
            f"eval.generation.every={section.every}, and eval.generation.files names no "
            "questions; set them, or 0"
        )
    return found + evaluators.of(config.evals)


def check(config) -> None:
    """Raise ConfigError, naming the field, for an evaluator that is invalid or does not fit."""
    if config.eval.generation.every < 0:
        raise ConfigError(
            f"eval.generation.every={config.eval.generation.every}: expected a number of at least 0"
        )
    every = scheduled(config)
    names = [one.name for one in every]
    for one in every:
        if names.count(one.name) > 1:
            raise ConfigError(f"{one.where}: another evaluation has this name; rename it")
        evaluators.check(one, config)


def held_out(config) -> dict[str, str]:
    """Name -> files to evaluate: eval.data, and "holdout" if data.holdout_share is set."""
    more = {"holdout": tasks.HOLDOUT} if config.data.holdout_share else {}
    return {name: files for name, files in config.eval.data.items() if files} | more
