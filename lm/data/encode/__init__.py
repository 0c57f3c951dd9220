"""Encode records as tokens, with the marks that the loss and the labels need."""
