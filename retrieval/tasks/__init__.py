"""Tasks that train a model together with a memory."""
