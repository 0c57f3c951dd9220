"""The error of everything that reads or writes weights."""


class WeightsError(ValueError):
    """Weights that cannot be found, read or written; the message names the file or tensors and what to do."""
