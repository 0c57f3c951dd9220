"""Scoring of short answers: normalised exact match, containment and Wilson intervals."""

import math
import re
import unicodedata
from collections.abc import Sequence


def normalise(text: str) -> str:
    """Normalise a text: "The Côte-d'Ivoire." -> "cote d ivoire".

    Lower case without accents, punctuation and articles, with single spaces. This is SQuAD's answer
    normalisation (Rajpurkar et al. 2016, section 6.1), with accents folded and hyphens read as
    spaces.
    """
    plain = "".join(
        c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)
    ).lower()
    words = re.sub(r"[^\w]+|_", " ", plain.replace("u.s.", "us").replace("u.k.", "uk")).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def exact(text: str, answers: Sequence[str]) -> bool:
    """Tell whether the text equals one of the answers, both normalised."""
    return normalise(text) in {normalise(answer) for answer in answers}


def contains(text: str, answers: Sequence[str], others: Sequence[str] = ()) -> bool:
    """Tell whether the text contains an answer as whole words, both normalised.

    others: wrong names that contain an answer ("Guinea-Bissau" where "Guinea" is asked). Longer
    names are matched first.
    """
    words = f" {normalise(text)} "
    names = [(normalise(name), True) for name in answers] + [
        (normalise(name), False) for name in others
    ]
    for name, right in sorted(names, key=lambda pair: -len(pair[0])):
        while name and f" {name} " in words:
            if right:
                return True
            words = words.replace(f" {name} ", " | ", 1)
    return False


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of a proportion (Wilson 1927); (0, 1) for no trials.

    z: half width in standard errors (1.96: 95 %). Raises ValueError unless 0 <= successes <=
    trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(
            f"{successes} successes in {trials} trials; expected 0 <= successes <= trials"
        )
    if not trials:
        return 0.0, 1.0
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)
