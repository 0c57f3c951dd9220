"""Whether an answer equals the reference of its record."""

import string

from lm.rewards.reward import Answer

PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: Answer, *, field: str = "answer", normalise: bool = True) -> float:
    """1.0 if the answer is one of the references in `field`, a text or a list of texts.

    normalise: compare in lower case, without ASCII punctuation and with single spaces.
    """
    wanted = answer.record[field]
    wanted = wanted if isinstance(wanted, list) else [wanted]
    spelled = normalised if normalise else str
    return float(spelled(answer.text) in [spelled(one) for one in wanted])


def normalised(text: object) -> str:
    """The text in lower case, without ASCII punctuation and with single spaces."""
    return " ".join(str(text).lower().translate(PUNCTUATION).split())
