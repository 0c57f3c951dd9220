"""Error raised by code that reads or writes weights."""


class WeightsError(ValueError):
    """Weights that cannot be found, read or written.

    The message names the file or the tensors and says what to do.
    """
