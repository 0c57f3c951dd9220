"""Losses that several tasks share."""

from lm.losses.loss import Loss, Term

__all__ = ["Loss", "Term"]
