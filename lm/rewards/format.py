"""Whether an answer has a format: a regular expression, and an end."""

import re

from lm.errors import ConfigError
from lm.rewards.reward import Answer


def format(answer: Answer, *, pattern: str, whole: bool = True) -> float:
    """1.0 if the regular expression matches the whole answer, or a part with whole=False."""
    try:
        expression = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(
            f"pattern={pattern!r} is no regular expression ({error}); correct it"
        ) from error
    match = expression.fullmatch if whole else expression.search
    return float(match(answer.text) is not None)


def ended(answer: Answer) -> float:
    """1.0 if a stop token ended the answer, 0.0 if its budget did."""
    return float(answer.ended)
