"""Methods that limit forgetting: LoRA, penalties for leaving the base, weight interpolation."""
