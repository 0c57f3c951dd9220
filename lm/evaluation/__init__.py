"""Evaluation: what a model knows, as numbers with their uncertainty."""
