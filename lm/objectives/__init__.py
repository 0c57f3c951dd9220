"""Objectives: functions (model, params, batch, rng) -> Loss, by the name a config gives them."""

from lm.objectives.loss import Loss
from lm.objectives.next_token import next_token

OBJECTIVES = {"next_token": next_token}

__all__ = ["OBJECTIVES", "Loss", "next_token"]
