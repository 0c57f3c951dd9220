"""Evaluation: scores of a model, with their uncertainty."""
