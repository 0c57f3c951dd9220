"""Ways in which a memory's passages reach a model."""
