"""Encoders of texts to vectors, and of pairs to scores."""
