"""Preview of training rows, with checks for likely mistakes."""
