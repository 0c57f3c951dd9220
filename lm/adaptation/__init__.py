"""What limits forgetting when a model is trained further: low-rank adapters, penalties for leaving the base, interpolation with it."""
