"""Whether an answer cites passages by their numbers, as in [2]."""

import re

from lm.rewards.reward import Answer

CITATION = re.compile(r"\[(\d+)\]")


def citations(answer: Answer, *, field: str = "", passages: int = 0) -> float:
    """Share of the cited numbers that are right; 0.0 without any.

    field: of the record, the list of numbers that may be cited; "" = all from 1 to `passages`, or
    any if that is 0.
    """
    cited = [int(number) for number in CITATION.findall(answer.text)]
    if not cited:
        return 0.0
    if field:
        right = {int(number) for number in answer.record[field]}
        return sum(number in right for number in cited) / len(cited)
    if passages:
        return sum(1 <= number <= passages for number in cited) / len(cited)
    return 1.0
