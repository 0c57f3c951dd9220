"""Rewards: plain functions of an answer that `task.rewards` names, one file each."""

from collections.abc import Callable

from lm.rewards.citations import citations
from lm.rewards.exact_match import exact_match
from lm.rewards.format import ended, format
from lm.rewards.instructions import instructions
from lm.rewards.reward import Answer, Reward, Scores, batched, check_constant, of, score

REWARDS: dict[str, Callable[..., float]] = {
    "exact_match": exact_match,
    "format": format,
    "ended": ended,
    "instructions": instructions,
    "citations": citations,
}

__all__ = ["REWARDS", "Answer", "Reward", "Scores", "batched", "check_constant", "of", "score"]
