"""RetrievalError: everything this room refuses, in words."""


class RetrievalError(ValueError):
    """The message names the thing, its value, what was expected and what to do; the memory is unchanged."""
